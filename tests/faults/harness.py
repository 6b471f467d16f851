"""Cases by number, and what became of them: in this process, or in several that share the work."""

import gc
import itertools
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import damage, errors, kills, rivals, wrong
from tests.faults.law import BROKEN, KEPT, Case, Verdict
from tests.faults.runs import Site, Stub
from tests.processes import Forked

Cases = Callable[[Site, random.Random], Iterator[Case]]
HARNESSES: dict[str, Cases] = {
    "kills": kills.cases, "damage": damage.cases, "errors": errors.cases, "rivals": rivals.cases,
    "inputs": wrong.cases,
}  # fmt: skip
MEMORY = Path("/dev/shm")
"""Where fsync costs nothing: a kill loses no more there than elsewhere. (A power cut is not tried.)"""
ALL = {"kills": 300, "damage": 1500, "errors": 300, "rivals": 24, "inputs": 1000}
"""How many cases `make faults` tries of each, at most."""


def tried(site: Site, harness: str, seed: int, numbers: range | list[int], most: float = 1e9) -> Iterator[
    tuple[int, Case, Verdict, float]
]:
    """(number, case, verdict, seconds) of these cases of the list that a seed gives; none begins after `most` seconds."""
    began = time.monotonic()
    wanted = set(numbers)
    for number, case in enumerate(HARNESSES[harness](site, random.Random(f"{seed} {harness}"))):
        if number > max(wanted) or time.monotonic() - began > most:
            break
        if number in wanted:
            start = time.monotonic()
            place = site.place("case")
            verdict = case.verdict(site, place)
            yield number, case, verdict, time.monotonic() - start
            shutil.rmtree(place, ignore_errors=True)


def worker(harness: str, seed: int, numbers: list[int], folder: Path, told: Path, stub: Stub | None = None) -> int:
    """A process that tries cases, each in children of its own, and tells of them in a file."""
    gc.freeze()  # children share what is here by now
    with told.open("a", buffering=1) as file:
        for number, case, verdict, seconds in tried(Site(folder, stub), harness, seed, numbers):
            file.write(json.dumps([number, str(case), verdict.word, verdict.why, seconds]) + "\n")
    return 0


def results(
    harness: str, seed: int, numbers: list[int], workers: int = 1, stub: Stub | None = None, seconds: float = 3600
) -> Iterator[tuple[int, str, Verdict, float]]:
    """(number, case, verdict, seconds) as they come, from processes that have imported all and nothing else has used."""
    folder = Path(tempfile.mkdtemp(prefix="kdrun-faults-", dir=MEMORY if MEMORY.is_dir() else None))
    files = [folder / f"{index}.jsonl" for index in range(workers)]
    for file in files:
        file.touch()
        (folder / file.stem).mkdir()
    started = [
        Forked(worker, harness, seed, numbers[index::workers], folder / file.stem, file, stub)
        for index, file in enumerate(files)
    ]
    end, read = time.monotonic() + seconds, [0] * workers
    running = True
    try:
        while running:
            running = any(process.poll() is None for process in started)
            for index, file in enumerate(files):
                whole, _, _ = file.read_text()[read[index] :].rpartition("\n")
                read[index] += len(whole) + bool(whole)
                for line in whole.splitlines():
                    number, case, word, why, took = json.loads(line)
                    yield number, case, Verdict(word, why), took
            if time.monotonic() > end:
                raise TimeoutError(f"{harness} takes more than {seconds} s")
            time.sleep(0.05)
        for process in started:
            if process.poll():
                raise RuntimeError(process.text)
    finally:
        for process in started:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def report(harness: str, seed: int, number: int, case: str, verdict: Verdict, seconds: float) -> str:
    """What is said of a law that was broken."""
    return (
        f"{verdict.word} ({BROKEN[verdict.word]}): {case}, seed {seed}, {seconds:.1f} s\n"
        f"  again: python -m tests.faults {harness} --seed {seed} --only {number}\n"
        + "".join(f"  | {line}\n" for line in verdict.why.splitlines())
    )


def counts(harness: str, words: Counter[str], seconds: float) -> str:
    total = sum(words.values())
    found = ", ".join(f"{words[word]} {word}" for word in [*KEPT, *BROKEN] if words[word])
    return f"{harness}: {total} cases in {seconds:.0f} s: {found or 'none'}; {sum(words[w] for w in BROKEN)} broken"


def numbered(count: int) -> list[int]:
    return list(itertools.islice(itertools.count(), count))
