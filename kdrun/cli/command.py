"""`kdrun <command>`: the console script, `python -m kdrun`, and the faces in scripts/.

A command is a file beside this one: its docstring is its usage, its `main` gives what is printed. None loads torch
before its arguments are right.

Exit codes: 0; 1 `Unfinished`, or a run failed; 2 a mistake; 128 + the number of the signal that ended it: 130 INT, 143
TERM, 129 HUP, 138 USR1, 140 USR2.
"""

import codecs
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.cli.help import overview
from kdrun.core import signals
from kdrun.core.errors import ConfigError, KdrunError, Unfinished, allowed
from kdrun.core.files import folder, reason
from kdrun.core.ranks import BadLaunch, refuse_ranks
from kdrun.core.schema import Schema, from_arguments
from kdrun.runs.record import open_records

COMMANDS = (
    "train", "sweep", "table", "status", "compare", "evaluate", "export", "predict", "publish", "download", "plot",
    "analyze", "explain", "doctor",
)  # fmt: skip
GUESSES = {
    "photos": "docs/quickstart_photos.md has the commands for photos of your own; the first is kdrun plot images "
    "dataset=imagefolder dataset.path=<folder>",
    "images": "kdrun plot images", "classify": "kdrun predict", "infer": "kdrun predict", "test": "kdrun evaluate",
    "distill": "kdrun train", "fit": "kdrun train", "list": "kdrun status", "results": "kdrun table",
    "convert": "kdrun export",
}  # fmt: skip
"""What newcomers take for a command -> what does it."""
HELP = {"-h", "--help"}
COMPLETION = {"-sc", "--shell_completion"}
PLAIN = {"±": "+-", "…": "...", "—": "-", "–": "-", "\N{MINUS SIGN}": "-", "×": "x", "→": "->", "≤": "<=", "≥": ">="}
"""Signs as a terminal shows them that has not got them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line: a command and its arguments, or the arguments of train alone. Returns the exit code."""
    return signals.exit_code(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    print_anything()
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


def print_anything() -> None:
    """From now on stdout and stderr have something for every sign, whatever a terminal's encoding: `+-` for `±`.

    A byte of a file's name that is no text is printed as `\\xe9`.
    """
    codecs.register_error(__name__, _instead)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook has put in its place
            stream.reconfigure(errors=__name__)


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error

    def sign(char: str) -> str:
        if "\udc80" <= char <= "\udcff":  # as os.fsdecode keeps such a byte
            return f"\\x{ord(char) - 0xDC00:02x}"
        return PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode()

    return "".join(map(sign, error.object[error.start : error.end])), error.end


def _run(command: str, arguments: Sequence[str]) -> int:
    """Print what the `main` of a command gives, or a line on stderr for each error."""
    if command == "sweep" and HELP & set(arguments):
        print(_usage(command))
        return 0
    if command in ("train", "sweep"):
        return int(_module(command).main(arguments))  # prints by itself, job for job
    if HELP & set(arguments):
        print(_usage(command))
        return 0
    try:
        refuse_ranks(f"kdrun {command}", "in one process")
        with signals.during(f"running kdrun {command}", "run the same command again"):
            print(_module(command).main(arguments))
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as error:  # a full disk, a folder that may not be written
        place = getattr(error, "filename", None)
        print(f"error: {f'{place}: ' if place else ''}{reason(error)}", file=sys.stderr)
        return 2
    except KdrunError as error:
        if isinstance(error, BadLaunch) and not error.told:
            return 2
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
        guessed = GUESSES.get(first.lower())
        near = f"; {guessed}" if guessed else allowed(first, COMMANDS, 0)
        near += f" (commands: {', '.join(COMMANDS)})"
        print(f"error: {first}: no command{near}", file=sys.stderr)
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
        raise ConfigError(f"{name or 'command line'}: not {kind}{allowed(name, kinds)}")
    options: Any = from_arguments(kinds[name], rest)
    given = getattr(options, "run", [])
    if "outputs" in options.model_fields_set:
        folder(options.outputs, "outputs")
    open_records([given] if isinstance(given, str) else given)
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
