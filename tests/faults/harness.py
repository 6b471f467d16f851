"""Cases by number, and what became of them: in this process, or in several that share the work."""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults import damage, errors, kills, rivals, wrong
from tests.faults.law import BROKEN, KEPT, Case, Verdict
from tests.faults.runs import Site
from tests.processes import Forked

Share = Mapping[str, Sequence[int]]
"""Harness -> the numbers of its cases."""
Cases = Callable[[Site, random.Random], Iterator[Case]]
HARNESSES: dict[str, Cases] = {
    "kills": kills.cases, "damage": damage.cases, "errors": errors.cases, "rivals": rivals.cases,
    "inputs": wrong.cases,
}  # fmt: skip
MEMORY = Path("/dev/shm")
"""Where fsync costs nothing: a kill loses no more there than elsewhere. (A power cut is not tried.)"""
ALL = {"kills": 600, "damage": 3000, "errors": 600, "rivals": 48, "inputs": 1000}
"""How many cases `make faults` tries of each, at most."""
SAMPLE = {"kills": 12, "damage": 36, "errors": 12, "rivals": 2, "inputs": 40}
"""How many of them the tests try."""


@dataclass(frozen=True)
class Result:
    """Of one case."""

    harness: str
    seed: int
    number: int
    case: str
    verdict: Verdict
    seconds: float

    @property
    def text(self) -> str:
        """What is said of it: in full where a law was broken."""
        word = self.verdict.word
        if not self.verdict.broken:
            return f"{word}: {self.case}, {self.seconds:.1f} s"
        return (
            f"{word} ({BROKEN[word]}): {self.case}, seed {self.seed}, {self.seconds:.1f} s\n"
            f"  again: python -m tests.faults {self.harness} --seed {self.seed} --only {self.number}\n"
            + "".join(f"  | {line}\n" for line in self.verdict.why.splitlines())
        )


def tried(site: Site, harness: str, seed: int, numbers: Iterable[int]) -> Iterator[Result]:
    """The cases of these numbers of the list that a seed gives."""
    wanted = set(numbers)
    for number, case in enumerate(HARNESSES[harness](site, random.Random(f"{seed} {harness}"))):
        if number in wanted:
            start = time.monotonic()
            place = site.place("case")
            verdict = case.verdict(site, place)
            shutil.rmtree(place, ignore_errors=True)
            yield Result(harness, seed, number, str(case), verdict, time.monotonic() - start)
        if number >= max(wanted, default=0):
            break


def work(share: Share, seed: int, folder: Path, told: Path) -> int:
    """A process that tries cases, each in children of its own, and tells of them in a file, line for line."""
    with told.open("a", buffering=1) as file:
        site = Site(folder)
        for harness, numbers in share.items():
            for result in tried(site, harness, seed, numbers):
                file.write(json.dumps(asdict(result)) + "\n")
    return 0


def results(shares: Sequence[Share], seed: int) -> Iterator[Result]:
    """As they come, from a process for each share, in which nothing else has been done."""
    folder = Path(tempfile.mkdtemp(prefix="kdrun-faults-", dir=MEMORY if MEMORY.is_dir() else None))
    files = [folder / f"{index}.jsonl" for index in range(len(shares))]
    for file in files:
        file.touch()
        (folder / file.stem).mkdir()
    started = [Forked(work, share, seed, folder / file.stem, file) for share, file in zip(shares, files, strict=True)]
    read = [0] * len(files)
    try:
        running = True
        while running:
            running = any(process.poll() is None for process in started)
            for index, file in enumerate(files):
                whole, end, _ = file.read_text()[read[index] :].rpartition("\n")
                read[index] += len(whole + end)
                for line in whole.splitlines():
                    told = json.loads(line)
                    yield Result(**told | {"verdict": Verdict(**told["verdict"])})
            time.sleep(0.05)
        for process in started:
            if process.poll():
                raise RuntimeError(process.text)
    finally:
        for process in started:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def counts(harness: str, words: Counter[str], seconds: float) -> str:
    found = ", ".join(f"{words[word]} {word}" for word in [*KEPT, *BROKEN] if words[word])
    broken = sum(words[word] for word in BROKEN)
    return f"{harness}: {sum(words.values())} cases in {seconds:.0f} s: {found or 'none'}; {broken} broken"
