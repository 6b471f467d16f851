"""Eight processes of one command in one outputs folder, some of them killed: each run is made once, and nothing is lost."""

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.law import Verdict, as_whole, flaw
from tests.faults.operations import Killed
from tests.faults.runs import RUNS, Site

PROCESSES = 8


@dataclass(frozen=True)
class Rivals:
    """The first of them are killed, each at its operation of this number: whoever builds then is gone."""

    run: str
    killed: tuple[int, ...]
    apart: float
    """Seconds from the start of one to that of the next."""

    def verdict(self, site: Site, place: Path) -> Verdict:
        words, outputs = site.words(self.run), place / "outputs"
        site.whole(self.run)
        children = []
        for number in range(PROCESSES):
            at = self.killed[number] if number < len(self.killed) else None
            children.append(site.started(place, words, None if at is None else Killed(outputs, at, "before")))
            time.sleep(self.apart)
        ended = [child.ended(120) for child in children]  # reaped in this order: the dead are zombies until then
        for number, end in enumerate(ended):
            if number < len(self.killed) and end.code == -9:
                continue
            if wrong := flaw(end):
                return wrong
            if end.code:
                return Verdict("lost", end.text[-3000:])
        text = "\n".join(end.text for end in ended)
        made = Counter(re.findall(r"^done: (\S+)", text, re.M))
        if twice := [name for name, count in made.items() if count > 1]:
            return Verdict("twice", f"{twice[0]}\n{text[-3000:]}")
        return as_whole(site, place, self.run, text)


def cases(site: Site, rng: random.Random, runs: tuple[str, ...] = tuple(RUNS)) -> Iterator[Rivals]:
    """For ever. Up to four of the eight are killed."""
    while True:
        for run in runs:
            count = len(site.whole(run).operations)
            killed = tuple(rng.randint(1, count) for _ in range(rng.randint(0, 4)))
            yield Rivals(run, killed, rng.choice([0, 0, 0.05, 0.2]))
