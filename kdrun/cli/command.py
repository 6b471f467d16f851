"""`kdrun <command>`: the console script, `python -m kdrun`, and the faces in scripts/.

A command is a file beside this one: its docstring is its usage, its `main` gives what is printed. None loads torch
before its arguments are right.

Exit codes: 0; 1 `Unfinished`, or a run failed; 2 a mistake; 128 + the number of the signal that ended it: 130 INT, 143
TERM, 129 HUP, 138 USR1, 140 USR2.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.cli.help import overview
from kdrun.core import signals
from kdrun.core.errors import ConfigError, KdrunError, Unfinished, allowed
from kdrun.core.schema import Schema, from_arguments
from kdrun.runs.record import open_record

COMMANDS = (
    "train", "table", "status", "compare", "evaluate", "export", "predict", "publish", "download", "plot", "analyze",
    "explain",
)  # fmt: skip
HELP = {"-h", "--help"}
COMPLETION = {"-sc", "--shell_completion"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line: a command and its arguments, or the arguments of train alone. Returns the exit code."""
    return signals.exit_code(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    first, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if first == "help":
        first, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    try:
        if first in COMMANDS:
            return _run(first, rest)
        return _run_without_a_word([first, *rest] if first else [])
    except BrokenPipeError:
        sys.stderr.close()  # e.g. `| head`: nobody reads on
        return 0


def _run(command: str, arguments: Sequence[str]) -> int:
    """Print what the `main` of a command gives, or a line on stderr for each error."""
    if command == "train":
        return int(_module(command).main(arguments))  # prints by itself, job for job
    if HELP & set(arguments):
        print(_usage(command))
        return 0
    try:
        with signals.during(f"running kdrun {command}", "run the same command again"):
            print(_module(command).main(arguments))
    except KdrunError as error:
        if isinstance(error, Unfinished) and error.text:
            print(error.text)
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1 if isinstance(error, Unfinished) else 2
    return 0


def _run_without_a_word(arguments: Sequence[str]) -> int:
    """Train, unless the first argument was meant as a command."""
    first = arguments[0] if arguments else "-"
    if "=" not in first and first[0] not in "-+~":
        near = f"{allowed(first, COMMANDS, 0)} (commands: {', '.join(COMMANDS)})"
        print(f"error: {first}: no command; {near}", file=sys.stderr)
        return 2
    if HELP & set(arguments):
        print(overview({name: _usage(name).splitlines()[0] for name in COMMANDS}, arguments))
        return 0
    if COMPLETION & set(arguments) and _completed():
        return 0
    return _run("train", arguments)


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
        open_record(run)
    text: str = importlib.import_module(f"{package}.{name}").report(options)
    return text


def _completed() -> bool:
    """Suggest commands to the shell, where the line is at the first word. Whether Hydra has nothing to suggest."""
    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) == 1:
        print(*COMMANDS)
    elif words and words[0] == "train":
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    return len(words) > 1 and words[0] in COMMANDS[1:]


def _module(command: str) -> Any:
    return importlib.import_module(f"kdrun.cli.{command}")


def _usage(command: str) -> str:
    return str(_module(command).__doc__).rstrip()
