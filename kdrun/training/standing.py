"""How a sweep stands, kept in a file below its outputs while it goes on, so that others see it.

The file is written when something changes, and holds no step and no rate: those are read from the runs themselves
(`kdrun.runs.pace`) by whoever looks. A lock beside it tells whether the sweep is still there.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Any, Self

from pydantic import Field

from kdrun.config.names import kind_of
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.files import remove, write_json
from kdrun.core.lock import Lock, held
from kdrun.core.schema import build
from kdrun.runs.pace import Pace
from kdrun.runs.shape import Part

log = logging.getLogger(__name__)
FOLDER = ".cache/sweeps"
OFTEN = 1.0  # seconds between two writes
TRIES = 3


class Seen(Part):
    """A run that there is something to say of: neither done, nor waiting for its first start."""

    name: str
    place: str
    """Below the outputs folder."""
    state: str
    why: str = ""
    since: float
    """Seconds of the epoch at which it came into this state."""
    batch: int = 0
    """Images a step; 0: not known."""


class Kind(Part):
    """Runs that differ in their seeds alone."""

    waiting: int = 0
    seconds: float | None = None
    """What one has taken; None: none is done."""


class Standing(Part):
    """How a sweep stands."""

    host: str
    process: int
    slots: int = Field(gt=0)
    counts: dict[str, int]
    """Runs by state, each state that there is."""
    runs: list[Seen]
    kinds: dict[str, Kind]
    more: int | None = None
    """So many that wait will be started; None: all."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def running(self) -> list[Seen]:
        return [run for run in self.runs if run.state == "running"]

    def left(self, paces: Mapping[str, Pace], now: float) -> float | None:
        """Seconds until the end, by what finished runs of the same kind took, and running ones will take.

        Args:
            paces: of the running ones, by place.
            now: seconds of the epoch.
        """
        took = {name: kind.seconds for name, kind in self.kinds.items() if kind.seconds is not None}
        for run in self.running:
            left = paces[run.place].left
            if left is not None:
                took.setdefault(kind_of(run.name), now - run.since + left)
        if not took:
            return None
        lefts = []
        for run in self.running:
            left = paces[run.place].left
            lefts.append(max(0.0, _expected(took, kind_of(run.name)) - now + run.since) if left is None else left)
        waiting = sum(kind.waiting for kind in self.kinds.values())
        share = 1.0 if self.more is None or not waiting else min(1.0, self.more / waiting)
        rest = share * sum(kind.waiting and kind.waiting * _expected(took, name) for name, kind in self.kinds.items())
        places = max(1, len(self.running)) if self.counts.get("queued") else self.slots
        return max([*lefts, (sum(lefts) + rest) / places])


def _expected(took: Mapping[str, float], kind: str) -> float:
    """Seconds of one run: of its kind, else of kinds that differ in keys alone, else of all."""
    alike = [seconds for name, seconds in took.items() if _plain(name) == _plain(kind)]
    return took.get(kind) or mean(alike or took.values())


def _plain(kind: str) -> str:
    return " ".join(word for word in kind.split() if "=" not in word)


class Notice:
    """The file of a sweep of this process; use it as a context. Where it cannot be written, nobody sees it elsewhere.

    Args:
        outputs: the outputs folder.
    """

    def __init__(self, outputs: Path) -> None:
        self.path = outputs / FOLDER / f"{socket.gethostname()}-{os.getpid()}.json"
        self._lock = contextlib.ExitStack()
        self._kept = False
        self._written = 0.0

    def __enter__(self) -> Self:
        for _ in range(TRIES):  # another sweep may have ended, and removed the folder as we made it
            try:
                self._lock.enter_context(Lock(_lock(self.path), wait=False))
                self._kept = True
                break
            except KdrunError as error:
                log.debug("%s: %s", self.path, error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            remove(self.path)
        self._lock.close()
        for _ in sweeps_below(self.path.parents[2]):  # so what killed ones left is removed
            pass
        with contextlib.suppress(OSError):  # others are there
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()

    def tell(self, standing: Standing) -> None:
        """Write it down."""
        self._written = time.monotonic()
        if self._kept:
            try:
                write_json(self.path, standing.model_dump())
            except OSError as error:  # a full disk stops no sweep here
                log.debug("%s: %s", self.path, error)

    @property
    def due(self) -> bool:
        """Whether enough time has gone by since the last one."""
        return time.monotonic() - self._written >= OFTEN


def sweeps_below(outputs: Path) -> Iterator[Standing]:
    """The sweeps that go on there. What those left that were killed is removed."""
    for path in sorted((outputs / FOLDER).glob("*.json")):
        if not held(_lock(path)):
            with contextlib.suppress(OSError):
                remove(path)
                remove(_lock(path))
            continue
        try:
            content: Any = json.loads(path.read_text("utf-8"))
            yield build(Standing, content, "")
        except (OSError, ValueError, ConfigError) as error:  # it has just ended, or another kdrun wrote it
            log.debug("%s: %s", path, error)


def _lock(path: Path) -> Path:
    return path.with_suffix(".lock")
