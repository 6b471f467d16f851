"""What every script of `scripts/` does around its `main`: --help without imports, errors in lines, exit codes.

2: a mistake; 1: `Unfinished`; 130: interrupted.
"""

import importlib
import sys


def launch(module: str, usage: str | None) -> None:
    """Print what `module.main` makes of the command line, or one line for each error on stderr."""
    from kdrun.errors import KdrunError, Unfinished

    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage)
        sys.exit(0)
    try:
        print(importlib.import_module(module).main(sys.argv[1:]))
    except KdrunError as error:
        if isinstance(error, Unfinished) and error.text:
            print(error.text)
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, Unfinished) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # e.g. `| head`: nobody reads on
