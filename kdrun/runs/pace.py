"""How far a run is and how fast, from what it leaves on disk meanwhile: whoever makes it, and wherever."""

import contextlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kdrun.core.errors import KdrunError
from kdrun.runs.record import read_record
from kdrun.runs.whole import METRICS

TAIL = 16384  # bytes; no line of metrics.jsonl is as long
STEP = re.compile(rb'^\{"step": (\d+)', re.M)
BEGUN = re.compile(rb" steps of \d+|resumed at step (\d+) of \d+")
"""What log.txt says before the first step of a session."""


@dataclass(frozen=True)
class Pace:
    """Where a run stands.

    Args:
        step: the last one that it has logged; None: it has not begun.
        steps: all of them.
        rate: steps a second, since this session began.
    """

    step: int | None = None
    steps: int | None = None
    rate: float | None = None

    @property
    def left(self) -> float | None:
        """Seconds, at this rate."""
        if self.step is None or self.steps is None or not self.rate:
            return None
        return (self.steps - self.step) / self.rate


def pace_of(directory: Path) -> Pace:
    """Of a run that is under way; what cannot be read is not known. Never raises, reads the ends of two files."""
    with contextlib.suppress(OSError, ValueError):
        began = os.stat(directory / "record.json").st_mtime_ns  # written before the first step, then at the end
        steps = _steps(directory, began)
        if steps is None:
            return Pace()
        path = directory / METRICS
        with contextlib.suppress(FileNotFoundError):
            seconds, logged = (os.stat(path).st_mtime_ns - began) / 1e9, STEP.findall(_tail(path))
            if seconds > 0 and logged:  # else an earlier session wrote them
                step, first = int(logged[-1]), _begun(directory, began)
                return Pace(step, steps, (step - first) / seconds if step > first else None)
        return Pace(_first(_tail(directory / "log.txt")), steps)
    return Pace()


@lru_cache(maxsize=4096)
def _steps(directory: Path, written: int) -> int | None:
    """All steps of a run, read once after each time that its record was written."""
    try:
        record = read_record(directory)
    except KdrunError:
        return None
    return record["steps"] if record is not None and record.get("steps") else None


@lru_cache(maxsize=4096)
def _begun(directory: Path, written: int) -> int:
    """As `_first`, of a session that has logged steps, with which log.txt grows: read whole, once."""
    return _first((directory / "log.txt").read_bytes())


def _first(log: bytes) -> int:
    """The step that a session began at, which log.txt says where it is not 0."""
    said = BEGUN.findall(log)
    return int(said[-1] or 0) if said else 0


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - TAIL, 0))
        return file.read()
