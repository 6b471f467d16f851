"""What every script of `scripts/` does around its `main`: --help without imports, errors in lines, exit codes.

2: a mistake; 1: `Unfinished`; 130: interrupted.
"""

import importlib
import sys
from collections.abc import Collection, Sequence


def launch(module: str, usage: str | None) -> None:
    """Print what `module.main` makes of the command line, or one line for each error on stderr."""
    from kdrun.core.errors import KdrunError, Unfinished

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


def dispatch(package: str, names: Collection[str], kind: str, arguments: Sequence[str]) -> str:
    """The text of `<name> key=value ...`, where `package.<name>` is a module with `Options` and `report`.

    Args:
        kind: what a name is, for messages.

    Raises:
        ConfigError: an unknown name or key, or a value that is not allowed.
    """
    from kdrun.core.errors import ConfigError, allowed
    from kdrun.core.schema import from_arguments

    name, *rest = arguments or [""]
    if name not in names:
        raise ConfigError(f"{name or 'command line'}: not {kind}; {allowed(name, names)}")
    module = importlib.import_module(f"{package}.{name}")
    text: str = module.report(from_arguments(module.Options, rest))
    return text
