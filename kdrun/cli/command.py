"""`kdrun <command>`: the console script, `python -m kdrun`, and the faces in scripts/.

A command is a file beside this one: its docstring is its usage, its `main` gives what is printed. None loads torch
before its arguments are right.

Exit codes: 0; 1 `Unfinished`, or a run failed; 2 a mistake; 130 interrupted.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.cli import train
from kdrun.cli.help import overview
from kdrun.core.errors import ConfigError, KdrunError, Unfinished, allowed
from kdrun.core.schema import Schema, from_arguments
from kdrun.runs.layout import opened

COMMANDS = (
    "train", "table", "status", "compare", "evaluate", "export", "predict", "publish", "download", "plot", "analyze",
    "explain",
)  # fmt: skip
HELP = {"-h", "--help"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line: a command and its arguments, or the arguments of train alone. Returns the exit code."""
    first, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if first == "help":
        first, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if first not in COMMANDS:
        if not first or "=" in first or first[0] in "-+~":
            first, rest = "train", [word for word in (first, *rest) if word]
            if HELP & set(rest):
                print(overview({name: _usage(name).splitlines()[0] for name in COMMANDS}, rest))
                return 0
        else:
            near = f"{allowed(first, COMMANDS, 0)} (commands: {', '.join(COMMANDS)})"
            print(f"error: {first}: no command; {near}", file=sys.stderr)
            return 2
    return train.main(rest) if first == "train" else printed(first, rest)


def printed(command: str, arguments: Sequence[str]) -> int:
    """Print what the `main` of a command gives, or a line on stderr for each error. Returns the exit code."""
    if HELP & set(arguments):
        print(_usage(command))
        return 0
    try:
        print(_module(command).main(arguments))
    except KdrunError as error:
        if isinstance(error, Unfinished) and error.text:
            print(error.text)
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1 if isinstance(error, Unfinished) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # e.g. `| head`: nobody reads on
    return 0


def dispatch(package: str, kinds: Mapping[str, type[Schema]], kind: str, arguments: Sequence[str]) -> str:
    """The text of `<name> key=value ...`, by the `report` of `package.<name>`, which loads when its options are right.

    Args:
        kinds: name -> its options.
        kind: what a name is, for messages.

    Raises:
        ConfigError: an unknown name or key, or a value that is not allowed.
        KdrunError: `run` is no finished run.
    """
    name, *rest = arguments or [""]
    if name not in kinds:
        raise ConfigError(f"{name or 'command line'}: not {kind}; {allowed(name, kinds)}")
    options: Any = from_arguments(kinds[name], rest)
    runs = getattr(options, "run", [])
    for run in [runs] if isinstance(runs, str) else runs:
        opened(run)
    text: str = importlib.import_module(f"{package}.{name}").report(options)
    return text


def _module(command: str) -> Any:
    return importlib.import_module(f"kdrun.cli.{command}")


def _usage(command: str) -> str:
    return str(_module(command).__doc__).rstrip()
