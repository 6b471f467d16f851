"""What became of a run that was broken: a word for each law, kept or not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.child import Ended
from tests.faults.runs import Site, difference, left

KEPT = {
    "same": "bitwise as if nothing had been",
    "rebuilt": "the same, and a line says what was damaged",
    "refused": "a line and an exit code that is not 0",
    "told": "a line names what was left out, or could not be removed",
    "unread": "nothing that was asked for needs this file",
}
BROKEN = {
    "lost": "not completed, or files are missing",
    "silent": "another result, and exit code 0",
    "litter": "files that the whole run does not leave",
    "hang": "it did not end",
    "traceback": "a traceback where a line is promised",
    "crash": "ended by a signal of its own",
    "mute": "failed without a line, or with more than 20",
    "stuck": "what the line advises does not help",
    "twice": "made by two processes",
    "blamed": "the line does not say what is wrong",
    "written": "a refusal that left files",
}


@dataclass(frozen=True)
class Verdict:
    """A word of `KEPT` or `BROKEN`, and what a reader needs to know of it."""

    word: str
    why: str = ""

    @property
    def broken(self) -> bool:
        return self.word in BROKEN


class Case(Protocol):
    """One way to break one run. Its text says which."""

    def verdict(self, site: Site, place: Path) -> Verdict:
        """Of breaking it in `place`, an empty working directory."""
        ...


def flaw(ended: Ended) -> Verdict | None:
    return None if ended.flaw is None else Verdict(ended.flaw, ended.text[-3000:])


def completed(site: Site, place: Path, run: str, kept: str = "same") -> Verdict:
    """The same command, with nothing in its way: it ends as the whole run did."""
    ended = site.ended(place, site.words(run))
    if wrong := flaw(ended):
        return wrong
    if ended.code:
        return Verdict("lost", ended.text[-3000:])
    return as_whole(site, place, run, ended.text, kept)


def as_whole(site: Site, place: Path, run: str, text: str, kept: str = "same") -> Verdict:
    """Whether what stands there is what the whole run left."""
    other = difference(left(place / "outputs"), site.whole(run).left)
    return Verdict(kept) if other is None else Verdict(other[0], f"{other[1]}\n{text[-3000:]}")
