"""Every file that a finished or a killed run left, damaged in each way, and then a command that may read it.

Which files there are is not listed: they are what is found below the outputs.
"""

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.damage import deleted, flipped, made_a_folder, truncated, zeroed
from tests.faults.law import Verdict, completed, flaw
from tests.faults.operations import Killed
from tests.faults.runs import NOTES, RUNS, Site, difference, left

WAYS = {way.__name__: way for way in (flipped, truncated, zeroed, deleted, made_a_folder)}
OFTEN = ("flipped", "flipped", "flipped", "flipped", "truncated", "zeroed", "deleted", "made_a_folder")
STAGES = ("finished", "finished", "finished", "half", "late")
READERS = {
    "evaluate": "evaluate run={run}", "evaluate networks": "evaluate run={run} dataset={dataset} name=again",
    "table": "table", "status": "status", "curves": "plot curves run={run}", "coverage": "plot coverage run={run}",
    "export": "export to=safetensors repeats=0 run={run}", "predict": "predict images={images} out=outputs/predictions.csv run={run}",
    "probe": "analyze linear_probe run={run}", "compare": "compare run={run} run={other}",
}  # fmt: skip
"""Name -> the command line."""
TRAINING = ("again", "student")
"""`again`: the same command; `student`: the same command where the run itself is gone, but not what it needs."""
UNREAD = {
    "log.txt": "is for people; nothing reads more of it than its last lines, for people",
    "config.yaml": "is for people; commands read the same from the record",
}
"""Names of files of which no result depends. (Nor of notes of hashes, without which the data is read again.)"""


@dataclass(frozen=True)
class Damage:
    """Of one file."""

    run: str
    stage: str
    """finished, or killed at about the middle (half) or the end (late) of its checkpoints."""
    file: str
    way: str
    at: float
    reader: str

    def verdict(self, site: Site, place: Path) -> Verdict:
        if self.reader not in TRAINING:
            return self._read(site, place)
        outputs = place / "outputs"
        shutil.copytree(stage_of(site, self.run, self.stage), outputs)
        if self.reader == "student":
            shutil.rmtree(outputs / own_of(site, self.run))
        WAYS[self.way](outputs / self.file, self.at)
        ended = site.ended(place, site.words(self.run))
        if wrong := flaw(ended):
            return wrong
        if ended.code:
            return self._advised(site, place, ended.text)
        found, whole = left(outputs), dict(site.whole(self.run).left)
        own, expected = taken(found, self.file), taken(whole, self.file)
        if other := difference(found, whole):
            return Verdict(other[0], f"{other[1]}\n{ended.text[-3000:]}")
        if own != expected:
            return (
                Verdict("silent", f"stays damaged\n{ended.text[-3000:]}") if self._needed(site) else Verdict("unread")
            )
        said = re.search("damaged|anew|gone|not as it was|going on from", ended.text)
        return Verdict("rebuilt" if said else "same")

    def _needed(self, site: Site) -> bool:
        """Whether the command vouches for the file: for the run itself, or for all that it is made from."""
        own = self.file.startswith(own_of(site, self.run))
        if Path(self.file).name in UNREAD or self.file.startswith(NOTES):
            return False
        return (
            own if self.reader == "again" and self.stage == "finished" else not self.file.startswith("artifacts/split")
        )

    def _advised(self, site: Site, place: Path, text: str) -> Verdict:
        """Refused: what the line says to delete is deleted, and the same command ends as the whole run."""
        found = re.search(r"delete (\S+?)(?:[;,)]|\.?$| )", text, re.M)
        if found is None:
            return Verdict("refused", text)
        advised = {"it": self.file, "them": self.file}.get(found[1], found[1])
        path = place / advised if (place / advised).exists() else place / "outputs" / self.file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        after = completed(site, place, self.run)
        return Verdict("stuck", f"{text}\nthen {after.word}: {after.why}") if after.broken else Verdict("refused", text)

    def _read(self, site: Site, place: Path) -> Verdict:
        known = unbroken(site, self.run, self.reader)
        if known is None:
            raise ValueError(f"{self.reader} is not for {self.run}")
        text, whole = known[0], dict(known[1])
        place = site.place(place.name)
        outputs = place / "outputs"
        shutil.copytree(site.whole(self.run).outputs, outputs)
        WAYS[self.way](outputs / self.file, self.at)
        ended = site.ended(place, words_of(site, self.run, self.reader))
        if wrong := flaw(ended):
            return wrong
        if ended.code:
            return Verdict("refused", ended.text)
        found = left(outputs)
        taken(found, self.file), taken(whole, self.file)
        other = difference(found, whole)
        if other is None and ended.text == text:
            return Verdict("unread")
        folder = Path(self.file).parent
        if self.way == "deleted" and Path(self.file).name == "record.json":
            return Verdict("unread")  # a folder without a record is no run; a table of a plan shows what it lacks
        told = any(part in ended.text for part in ("left out:", "damaged", f"{self.file}:", f"{folder}:"))
        return Verdict("told" if told else "silent", f"{other}\n{ended.text[-3000:]}")


def taken(found: dict[str, str], file: str) -> dict[str, str]:
    """What stands in the place of a file, which no longer is in `found` then."""
    start = NOTES if file.startswith(NOTES) else f"{file}/"
    return {name: found.pop(name) for name in list(found) if name == file or name.startswith(start)}


def own_of(site: Site, run: str) -> str:
    """The directory of the run itself, below the outputs."""
    (found,) = [place for place in runs_of(site, run) if place.parts[1] == _method(run)][:1]
    return found.as_posix()


def _method(run: str) -> str:
    (method,) = [word for word in RUNS[run] if word.startswith("method=")] or ["method=distill"]
    return method.removeprefix("method=")


def runs_of(site: Site, run: str) -> list[Path]:
    """The directories of all its runs, below the outputs."""
    whole = site.whole(run)
    return sorted(path.parent.relative_to(whole.outputs) for path in whole.outputs.glob("runs/**/record.json"))


def words_of(site: Site, run: str, reader: str) -> list[str]:
    own = own_of(site, run)
    others = [place for place in runs_of(site, run) if place.as_posix() != own] or [Path(own)]
    return [
        word.format(
            run=f"outputs/{own}", other=f"outputs/{others[0]}", images=site.folder / "data" / "val", dataset="digits"
        )
        for word in READERS[reader].split()
    ]


_STAGES: dict[tuple[Site, str, str], Path] = {}
_UNBROKEN: dict[tuple[Site, str, str], tuple[str, dict[str, str]] | None] = {}


def stage_of(site: Site, run: str, stage: str) -> Path:
    """An outputs folder as it is at this stage."""
    whole = site.whole(run)
    if stage == "finished":
        return whole.outputs
    if (site, run, stage) not in _STAGES:
        saved = [
            n for n, what in enumerate(whole.operations, 1) if what.startswith("replace") and what.endswith("/last.pt")
        ]
        at = saved[len(saved) // 2 if stage == "half" else -1]
        place = site.place(f"{stage}-{run}")
        site.ended(place, site.words(run), Killed(place / "outputs", at, "after"))
        _STAGES[site, run, stage] = place / "outputs"
    return _STAGES[site, run, stage]


def unbroken(site: Site, run: str, reader: str) -> tuple[str, dict[str, str]] | None:
    """What a command prints, and all that is there then, where nothing is damaged. None: it is of other runs."""
    if (site, run, reader) not in _UNBROKEN:
        place = site.place("case")  # the same each time: its name stands in what they print
        shutil.copytree(site.whole(run).outputs, place / "outputs")
        ended = site.ended(place, words_of(site, run, reader))
        _UNBROKEN[site, run, reader] = None if ended.code else (ended.text, left(place / "outputs"))
    return _UNBROKEN[site, run, reader]


def cases(site: Site, rng: random.Random, runs: tuple[str, ...] = tuple(RUNS)) -> Iterator[Damage]:
    """For ever; run for run, each file of each stage before one is there again."""
    left_over: dict[tuple[str, str], list[str]] = {}
    while True:
        for run in runs:
            stage, way, at = rng.choice(STAGES), rng.choice(OFTEN), rng.random()
            files = left_over.setdefault((run, stage), [])
            if not files:
                outputs = stage_of(site, run, stage)
                found = [path for path in sorted(outputs.rglob("*")) if path.is_file() and path.stat().st_size]
                files += [path.relative_to(outputs).as_posix() for path in found]
                rng.shuffle(files)
            file, reader = files.pop(), rng.choice([*TRAINING * 5, *READERS])
            if stage != "finished" or (reader == "student" and file.startswith(own_of(site, run))):
                reader = "again"
            if reader in TRAINING or unbroken(site, run, reader) is not None:
                yield Damage(run, stage, file, way, at, reader)
