"""The other ranks of a run as the host hears of them, by a key-value store: what they say, and whether they still live.

Loads no torch: a store is a torch.distributed.Store. Nothing here waits for tensors.
"""

import contextlib
import json
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdrun.core import signals
from kdrun.core.failure import KdrunError
from kdrun.core.machine import boot_id, has_ended, started

LONGEST_PAUSE = 0.25
"""Seconds between two looks at what another rank has said."""
CAUSE = 5.0
"""Seconds. Where talking to the others fails, another rank may be about to say why."""
THROUGH, GOING = 60.0, 10.0
"""Seconds that the others wait at the end for rank 0 to be through, and it for them to go."""
LOST = "RankLost"
"""The kind of failure of a rank that could not say it itself."""
GONE = "its process is gone: killed, or out of memory"
UNREACHABLE = "cannot be reached any more: it, or its launcher, has ended"


class Failure(NamedTuple):
    """What a rank said when it could go no further."""

    rank: int
    text: str
    kind: str = "KdrunError"
    """Of exception."""
    trace: str = ""


class RankFailed(KdrunError):
    """Another rank of the run goes no further, so this one cannot either."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(f"rank {failure.rank}: {failure.text}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failure,)


@dataclass(frozen=True)
class Process:
    """A process, as those of its machine can see whether it still runs."""

    host: str
    pid: int
    started: str

    @classmethod
    def own(cls) -> "Process":
        return cls(f"{socket.gethostname()} {boot_id()}", os.getpid(), started(os.getpid()))

    def is_gone(self) -> bool:
        """False where nobody here can tell."""
        if self.host != f"{socket.gethostname()} {boot_id()}":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return started(self.pid) != self.started or has_ended(self.pid)


class Peers:
    """Args:
    store: a torch.distributed.Store that all ranks reach; None: one process, or one that has not joined yet.
    processes: of the ranks.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Any = None, processes: Mapping[int, Process] | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.first = rank == 0
        """Whether this rank writes, logs and decides."""
        self.store: Any = store if size > 1 else None
        self.failing = False  # this rank goes no further, and is about to say so
        self.on_failure: list[Callable[[RankFailed], None]] = []
        """What is to be done, last first, where this rank cannot go on because of another one, and hangs."""
        self._processes = dict(processes or {})

    def alike(self, name: str, value: Any) -> dict[int, Any]:
        """Values of the ranks that differ from that of rank 0, by rank; with that of rank 0. Empty: all agree.

        Args:
            name: a key of its own for each question.
        """
        if self.store is None:
            return {}
        self.store.set(f"alike/{name}/{self.rank}", pickle.dumps(value))
        values = [pickle.loads(self.wait(f"alike/{name}/{rank}")) for rank in range(self.size)]
        others = {rank: other for rank, other in enumerate(values) if other != values[0]}
        return {0: values[0], **others} if others else {}

    # -- when a rank goes no further

    def fail(self, error: Exception) -> None:
        """Tell the other ranks that this one goes no further; what the first one says counts."""
        if self.store is None:
            return
        self.failing = True
        if not isinstance(error, RankFailed):
            told = Failure(self.rank, said(error), type(error).__name__, "".join(traceback.format_exception(error)))
            self.tell(told)

    def failure(self) -> Failure | None:
        """Of the rank that failed first; None: none has, as far as this one knows."""
        if self.store is None:
            return None
        try:
            if not self.store.check(["failed"]):
                for rank, process in self._processes.items():
                    if rank != self.rank and process.is_gone() and not self.has_left(rank):
                        self.tell(Failure(rank, GONE, LOST))
                        break
                else:
                    return None
            return Failure(*json.loads(self.store.get("failed")))
        except RuntimeError:  # with the process that kept the store
            return Failure(0, UNREACHABLE, LOST)

    def blamed(self, error: Exception) -> Exception:
        """Why this rank really goes no further: what another one has said before it broke off, or this error."""
        if self.store is None or isinstance(error, RankFailed):
            return error
        self.failing = True
        failed, end = self.failure(), time.monotonic() + CAUSE
        while failed is None and is_of_talking(error) and time.monotonic() < end:
            time.sleep(LONGEST_PAUSE)
            failed = self.failure()
        if failed is None or failed.rank == self.rank or failed.text == said(error):
            return error
        return RankFailed(failed)

    def tell(self, failure: Failure) -> None:
        """All ranks, if they have not been told of another one."""
        self.store.compare_set("failed", "", json.dumps(failure))

    def far(self) -> list[int]:
        """The ranks whose processes cannot be seen from here."""
        host = Process.own().host
        return [rank for rank, process in self._processes.items() if process.host != host]

    def leave(self, code: int) -> int:
        """Call this last. The others wait until rank 0 is through, as a launcher ends all where one process has ended;
        and rank 0, which may keep the store, until they go.

        Returns:
            The exit code: 0, or where this rank is not through with all either, that of rank 0.
        """
        with contextlib.suppress(RuntimeError):  # the store is gone, so they are
            if self.first:
                self.store.set("code", str(code))
                self.say_left()
                self._await(range(1, self.size), GOING)
            else:
                self._await([0], THROUGH)
                if code and self.store.check(["code"]):
                    code = int(self.store.get("code")) or code
                self.say_left()
        return code

    def speaks_of(self, failure: Failure) -> bool:
        """Whether this rank tells of it: rank 0 tells of all others, and where it cannot, the next one of it."""
        return self.first or (self.rank == 1 and failure.rank == 0 and failure.kind == LOST)

    def say_stopped(self) -> None:
        """A signal ends this rank; where others hang by then, nothing is lost by ending them too."""
        self.relay()
        self.store.set("stopped", "")

    def say_left(self) -> None:
        """What becomes of this process from now on concerns nobody."""
        self.store.set(f"left/{self.rank}", "")

    def has_left(self, rank: int) -> bool:
        return bool(self.store.check([f"left/{rank}"]))

    def _await(self, ranks: Iterable[int], seconds: float) -> None:
        end = time.monotonic() + seconds
        for rank in ranks:
            process = self._processes.get(rank)
            while not self.has_left(rank) and time.monotonic() < end and (process is None or not process.is_gone()):
                time.sleep(0.02)

    def relay(self) -> int:
        """Tell the other ranks of a signal that came to this one. Returns one that came to any of them; 0: none."""
        number = int(signals.seen() or 0)
        if number:
            self.store.compare_set("signal", "", str(number))
            return number
        return int(self.store.get("signal")) if self.store.check(["signal"]) else 0

    def wait(self, key: str) -> bytes:
        """What a rank sets. Raises RankFailed where another one fails meanwhile."""
        pause = 1e-3
        try:
            while not self.store.check([key]):  # `wait` would hold the store against other threads, and complain aloud
                failed = self.failure()
                if failed is None and not self.first and self.has_left(0) and not self.store.check([key]):
                    failed = Failure(0, "has ended before the others")
                if failed is not None and failed.rank != self.rank:
                    raise RankFailed(failed)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            return bytes(self.store.get(key))
        except RuntimeError:
            raise RankFailed(Failure(0, UNREACHABLE, LOST)) from None


def said(error: BaseException) -> str:
    """An error in one line; of one that is no user's, its kind too."""
    known = isinstance(error, KdrunError | OSError)
    return " ".join(f"{'' if known else f'{type(error).__name__}: '}{error}".split())


def is_of_talking(error: BaseException) -> bool:
    """Whether it may be that another rank has broken off."""
    words = ("gloo", "nccl", "connection", "socket", "store", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
