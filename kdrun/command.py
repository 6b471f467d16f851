"""What every script of `scripts/` does around its `main`: --help without imports, errors in lines, exit code 2."""

import importlib
import sys


def launch(module: str, usage: str | None) -> None:
    """Print what `module.main` makes of the command line, or one line for each error on stderr."""
    from kdrun.errors import KdrunError

    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage)
        sys.exit(0)
    try:
        print(importlib.import_module(module).main(sys.argv[1:]))
    except KdrunError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # e.g. `| head`: nobody reads on
