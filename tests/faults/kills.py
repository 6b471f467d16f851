"""SIGKILL, at a moment or at an operation on files, once or twice: the same command ends as if nothing had been."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.law import Verdict, completed, flaw
from tests.faults.operations import Killed
from tests.faults.runs import RUNS, Site

MOMENTS = ("before", "half", "after")


@dataclass(frozen=True)
class Kill:
    """The first time at `at`, and if it is not None the command that goes on at `again`."""

    run: str
    at: int | float
    """The number of an operation; or seconds."""
    moment: str
    again: int | None

    def verdict(self, site: Site, place: Path) -> Verdict:
        words, outputs = site.words(self.run), place / "outputs"
        if isinstance(self.at, float):
            child = site.started(place, words)
            time.sleep(self.at)
            child.kill()
            ended = child.ended()
        else:
            ended = site.ended(place, words, Killed(outputs, self.at, self.moment))
        if self.again is not None and ended.code == -9:
            ended = site.ended(place, words, Killed(outputs, self.again, self.moment))
        if ended.code != -9 and (wrong := flaw(ended)):
            return wrong
        return completed(site, place, self.run)


def cases(site: Site, rng: random.Random, runs: tuple[str, ...] = tuple(RUNS)) -> Iterator[Kill]:
    """For ever. One in five is at a moment, one in four twice."""
    while True:
        for run in runs:
            count = len(site.whole(run).operations)
            at = rng.uniform(0, 1.5) if rng.random() < 0.2 else rng.randint(1, count)
            yield Kill(run, at, rng.choice(MOMENTS), rng.randint(1, count) if rng.random() < 0.25 else None)
