"""A full disk and other errors of the operating system, at any operation on files: one line, and nothing is lost."""

import errno
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.damage import stage_of
from tests.faults.law import Verdict, as_whole, completed, flaw
from tests.faults.operations import GROWING, Failing, Fault
from tests.faults.runs import RUNS, Site

FULL = frozenset(GROWING)
FAULTS = {
    "full": Fault(errno.ENOSPC, lasting=True, names=FULL),
    "full for a moment": Fault(errno.ENOSPC, lasting=False),
    "full within a write": Fault(errno.ENOSPC, lasting=True, short=True, names=FULL),
    "over quota": Fault(errno.EDQUOT, lasting=True, names=FULL),
    "read-only": Fault(errno.EROFS, lasting=True),
    "broken": Fault(errno.EIO, lasting=True),
    "broken for a moment": Fault(errno.EIO, lasting=False),
    "forbidden": Fault(errno.EACCES, lasting=True, names=frozenset({"open", "mkdir", "replace", "rename", "link", "unlink"})),
    "forbidden for a moment": Fault(errno.EACCES, lasting=False),
    "stale handle": Fault(errno.ESTALE, lasting=False),
    "illegible": Fault(errno.EIO, lasting=True, names=frozenset({"read"})),
    "illegible for a moment": Fault(errno.EIO, lasting=False, names=frozenset({"read"})),
    "too many open": Fault(errno.EMFILE, lasting=False, names=frozenset({"read", "open"})),
}  # fmt: skip
STAGES = ("empty", "empty", "half", "finished")

SHARE = {"empty": 1, "half": 2, "finished": 20}
"""Of the operations of a run, about one in so many is done from there on."""


@dataclass(frozen=True)
class Error:
    """From operation `at` on, or at it alone."""

    run: str
    stage: str
    """Of the outputs folder before: empty, left by a kill (half), or finished."""
    fault: str
    at: int

    def verdict(self, site: Site, place: Path) -> Verdict:
        outputs = place / "outputs"
        if self.stage != "empty":
            shutil.copytree(stage_of(site, self.run, self.stage), outputs)
        ended = site.ended(place, site.words(self.run), Failing(outputs, self.at, FAULTS[self.fault]))
        if wrong := flaw(ended):
            return wrong
        if ended.code == 0:
            at_once = as_whole(site, place, self.run, ended.text)
            if at_once.word == "litter" and "could not be removed" in ended.text:
                return Verdict("told")
            if at_once.word != "litter":  # a lock, say: the next command removes it
                return at_once
        after = completed(site, place, self.run, "refused" if ended.code else "same")
        return Verdict(after.word, f"{ended.text[-1500:]}\nand then:\n{after.why}") if after.broken else after


def cases(site: Site, rng: random.Random, runs: tuple[str, ...] = tuple(RUNS)) -> Iterator[Error]:
    """For ever."""
    while True:
        for run in runs:
            stage, count = rng.choice(STAGES), len(site.whole(run).operations)
            yield Error(run, stage, rng.choice(list(FAULTS)), rng.randint(1, count // SHARE[stage]))
