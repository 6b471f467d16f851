"""A thread of each rank that looks after the others: what they fail of, whether they live, which signals came to them.

The thread that trains hears of a rank that is gone as soon as it talks to it over gloo; but it may be at work for long,
or wait for a rank that goes no further and still lives. Then this thread ends the process.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from kdrun.core import signals
from kdrun.core.peers import LOST, Failure, Peers, RankFailed

LOOK = 0.5
"""Seconds between two looks."""
GRACE, LONGER = 3.0, 60.0
"""Seconds until this process is ended because of another rank; and where it is about to end by itself."""
BEATS = 10
"""Looks between two signs of life, for ranks on other machines."""
SILENT = 60.0
"""Seconds without a sign of life, of as many looks: a machine that was suspended counts none."""


class Watch(threading.Thread):
    """Looks after the ranks of `here` until `stop`, and does something else at each look."""

    def __init__(self, here: Peers, also: Callable[[], object] = lambda: None) -> None:
        super().__init__(name="watch of ranks", daemon=True)
        self.here = here
        self.also = also
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        looks, since, beats = 0, 0.0, _Beats(self.here)
        while not self._over.wait(LOOK):
            failed, stopped = self.here.failure(), False
            if failed is None:
                with contextlib.suppress(RuntimeError):  # the store is gone: the next look finds out
                    stopped = self._look()
                    if not looks % BEATS:
                        beats.give()
                        beats.take()
            looks += 1
            if stopped or (failed is not None and failed.rank != self.here.rank):
                since = since or time.monotonic()
                if time.monotonic() - since > (LONGER if self.here.failing else GRACE):
                    end(self.here, failed)

    def _look(self) -> bool:
        """Whether a signal has ended another rank, so that this one need not go on."""
        number = self.here.relay()
        if number and signals.seen() is None:
            os.kill(os.getpid(), number)
        self.also()
        return bool(number) and self.here.store.check(["stopped"])


class _Beats:
    """Signs of life, where processes cannot be seen: rank 0 looks for those of all, the others for its own."""

    def __init__(self, here: Peers) -> None:
        self.here = here
        self.watched = [rank for rank in here.far() if here.first or rank == 0]
        self.seen: dict[int, tuple[bytes, int]] = {}

    def give(self) -> None:
        self.here.store.add(f"beat/{self.here.rank}", 1)

    def take(self) -> None:
        most = round(SILENT / (LOOK * BEATS))
        for rank in self.watched:
            key = f"beat/{rank}"
            now = bytes(self.here.store.get(key)) if self.here.store.check([key]) else b""
            before, count = self.seen.get(rank, (b"", 0))
            self.seen[rank] = (now, count + 1 if now == before else 0)
            if self.seen[rank][1] >= most and not self.here.has_left(rank):
                self.here.tell(Failure(rank, f"no sign of life for {SILENT:.0f} s", LOST))


def end(here: Peers, failed: Failure | None) -> None:
    """End this process, which hangs, because of another rank: what is to be done for that is done, locks are let go.

    Args:
        failed: None: a signal has ended the other one.
    """
    number = here.relay() if failed is None else 0
    if failed is not None and here.speaks_of(failed):
        error = RankFailed(failed)
        for act in reversed(here.on_failure if here.first else ()):
            with contextlib.suppress(Exception):  # a full disk, say; there is no other way to go on than to the end
                act(error)
        if not (here.first and here.on_failure):
            print(f"error: {error}", file=sys.stderr, flush=True)
    elif here.first:
        print(f"interrupted: stopped by {signal.Signals(number).name}; {signals.GO_ON}", file=sys.stderr, flush=True)
    signals.let_go()
    for worker in multiprocessing.active_children():
        worker.kill()
    code = 128 + number if number else 1
    os._exit(here.leave(code) if here.first else code)
