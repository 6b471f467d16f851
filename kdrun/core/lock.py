"""One builder at a time: a lock file with its owner's name and heartbeat, taken over when the owner is dead.

Works between processes and, on a shared file system, between machines: an owner of this machine is dead when its
process is gone; any owner is dead when its heartbeat has not moved for `STALE` seconds of our own clock.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)
HEARTBEAT = 5.0
STALE = 30.0
POLL = 0.2


def _boot_id() -> str:
    """Names this boot and this set of process ids: containers of one host share the first, not the second."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process in ticks since boot, where the system tells: tells two users of one number apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Lock:
    """`with Lock(path):` waits until nobody else holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner: dict[str, object] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot_id": _boot_id(),
            "started": _started(os.getpid()),
            "token": os.urandom(8).hex(),
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        seen: tuple[int, float] | None = None  # heartbeat of the other owner, and when we first saw it
        announced = False
        while not self._create():
            try:
                beat = self.path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if seen is None or seen[0] != beat:
                seen = (beat, time.monotonic())
            other = self._read()
            if self._dead(other, time.monotonic() - seen[1]):
                if self._take_over(other):
                    self._temporary(other.get("token")).unlink(missing_ok=True)
                    log.warning("took over %s from %s, which is gone", self.path.stem, _name(other))
                    break
            elif not announced:
                log.info("waiting for %s, which %s is building", self.path.stem, _name(other))
                announced = True
            time.sleep(POLL)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._read() == self.owner:
            self.path.unlink(missing_ok=True)

    @property
    def lost(self) -> bool:
        """Whether another process took the lock over while we held it (after we were suspended, say)."""
        try:
            return bool(json.loads(self.path.read_text()) != self.owner)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # a hiccup of the file system is no rival
            return False

    def require(self) -> None:
        """Raise LockLost where the lock is no longer ours: from then on, nothing may be written."""
        if self.lost:
            from kdrun.core.errors import LockLost  # pulls Hydra in

            raise LockLost(f"{self.path.with_suffix('')}: another process took this run over; it goes on there")

    def _create(self) -> bool:
        temporary = self._written()
        try:
            os.link(temporary, self.path)  # the file appears with its content, or not at all
        except FileExistsError:
            return False
        except OSError as error:
            from kdrun.core.errors import KdrunError  # pulls Hydra in

            raise KdrunError(f"{self.path.parent}: no lock can be made there ({error.strerror})") from None
        finally:
            temporary.unlink()
        return True

    def _take_over(self, dead: dict[str, object]) -> bool:
        """Put our name in place of a dead owner's, unless someone else did it first."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # orders the waiters; liveness is the heartbeat's business
                if os.fstat(file.fileno()).st_ino != self.path.stat().st_ino or self._read() != dead:
                    return False
                os.replace(self._written(), self.path)
                return True
        except FileNotFoundError:
            return False

    def _temporary(self, token: object) -> Path:
        return self.path.with_name(f".{self.path.name}.{token}")

    def _written(self) -> Path:
        temporary = self._temporary(self.owner["token"])
        try:
            temporary.write_text(json.dumps(self.owner))
        except OSError:  # a full disk
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _read(self) -> dict[str, object]:
        try:
            value = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _dead(self, other: dict[str, object], silent: float) -> bool:
        """Whether the owner is gone: here when its process is (a suspended one lives), elsewhere when it is silent."""
        pid = other.get("pid")
        here = other.get("host") == self.owner["host"] and other.get("boot_id") == self.owner["boot_id"]
        if not here or not isinstance(pid, int):
            return silent > STALE
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _started(pid) != other.get("started")  # the number was given to another process

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            if self.lost:
                return
            try:
                os.utime(self.path)
            except OSError as error:  # a hiccup of the file system: the next beat will tell
                log.warning("heartbeat of %s missed: %s", self.path, error)


def held(path: Path) -> bool:
    """Whether a living process holds the lock, as far as one look tells: one elsewhere lives if its heartbeat is fresh
    by our own clock."""
    lock = Lock(path)
    try:
        silent = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    return not lock._dead(lock._read(), silent)


def _name(owner: dict[str, object]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
