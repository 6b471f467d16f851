"""The tables of bad input: command lines and files that people have, each refused in a line that names what is wrong."""

import importlib
import json
import random
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.faults.child import Child
from tests.faults.law import Verdict, flaw
from tests.faults.runs import Site

SECONDS = 30.0


@lru_cache
def table(name: str) -> Any:
    """`inputs` or `commands`; loaded when they are asked for, since they are long."""
    return importlib.import_module(f"tests.faults.{name}")


@dataclass(frozen=True)
class Input:
    """A command line of `train`, and the files that it names."""

    name: str

    def verdict(self, site: Site, place: Path) -> Verdict:
        (case,) = [case for case in table("inputs").CASES if case.name == self.name]
        root = place / "given"
        root.mkdir()
        words = ["train", *case.arguments(root)]
        return refused(site, place, words, case.says.replace("{root}", str(root)))


@dataclass(frozen=True)
class Command:
    """A command that reads, in a folder with a finished run that is whole."""

    number: int
    words: str

    def verdict(self, site: Site, place: Path) -> Verdict:
        here, names = finished(site)
        words, says = (text.format(**names) for text in table("commands").COMMANDS[self.number])
        return refused(site, here, shlex.split(words), says)


@dataclass(frozen=True)
class Spoiled:
    """A command that reads a run in which something is damaged."""

    number: int
    words: str

    def verdict(self, site: Site, place: Path) -> Verdict:
        here, names = finished(site)
        damage, words, says = table("commands").DAMAGE[self.number]
        for name in ("run", "teacher"):
            shutil.copytree(here / names[name], place / names[name])
            table("commands").without_checksums(place / names[name])
        shutil.copy(here / "a.png", place)
        damage(place / names["run"])
        return refused(site, place, shlex.split(words.format(**names, outputs="outputs")), says)


def refused(site: Site, place: Path, words: list[str], says: str) -> Verdict:
    """Exit code 2, at most 20 lines, all errors, one of which says this; and nothing is written."""
    before = there(place)
    ended = site.started(place, words).ended(SECONDS)
    if wrong := flaw(ended):
        return wrong
    lines = ended.text.splitlines()
    if ended.code == 0:
        return Verdict("silent", ended.text[-3000:])
    if ended.code != 2 or not 1 <= len(lines) <= 20 or not all(line.startswith("error: ") for line in lines):
        return Verdict("mute", f"exit code {ended.code}\n{ended.text[-3000:]}")
    if says not in ended.text:
        return Verdict("blamed", f"expected: {says}\n{ended.text[-3000:]}")
    if written := sorted(there(place) ^ before):
        return Verdict("written", f"{', '.join(map(str, written))}\n{ended.text[-3000:]}")
    return Verdict("refused")


def there(place: Path) -> set[Path]:
    """But for what is remembered to be faster the next time."""
    return {path for path in place.rglob("*") if not {"__pycache__", ".cache"} & set(path.parts)}


_FINISHED: dict[Site, tuple[Path, dict[str, str]]] = {}


def finished(site: Site) -> tuple[Path, dict[str, str]]:
    """The folder that `commands.make` fills, and the names in it."""
    if site not in _FINISHED:
        here = site.place("commands")
        names = site.folder / "commands.json"
        ended = Child(here, _make, names).ended(120)
        if ended.code:
            raise RuntimeError(ended.text)
        _FINISHED[site] = here, json.loads(names.read_text())
    return _FINISHED[site]


def _make(names: Path) -> int:
    names.write_text(json.dumps(table("commands").make(Path.cwd())))
    return 0


def cases(site: Site, rng: random.Random) -> Iterator[Input | Command | Spoiled]:
    """Each of the tables once, in an order of the seed."""
    found = [
        *(Input(case.name) for case in table("inputs").CASES),
        *(Command(number, words) for number, (words, _) in enumerate(table("commands").COMMANDS)),
        *(Spoiled(number, words) for number, (_, words, _) in enumerate(table("commands").DAMAGE)),
    ]
    rng.shuffle(found)
    yield from found
