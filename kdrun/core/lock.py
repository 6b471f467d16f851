"""One builder at a time: a lock file with its owner's name and heartbeat, taken over when the owner is dead.

Works between processes and, on a shared file system, between machines: an owner of this machine is dead when its
process is gone or a zombie; any owner is dead when its heartbeat has not moved for `STALE` seconds of our own clock.

Every lock file appears whole, under a name of its own (`.<name>.<token>`), and is then linked to the name of the lock
where there is none, or renamed over that of a dead owner. Two that find one dead owner rename one after the other. So
who has put his file in place then removes all such files but his own, and looks: is the lock still his? Only then he
holds it. Of two that both saw theirs, the later rename came from a file that was written after the earlier one had
removed all, by one who looked at the lock after that: and saw a living owner, whom nobody replaces. For the same reason
one who was suspended meanwhile finds nothing to rename. That needs no hard links and no flock, which some file systems
lack (exFAT and FUSE the one, Lustre the other): without links the lock is created exclusively, then written.
"""

import contextlib
import errno
import json
import logging
import os
import re
import socket
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdrun.core import signals
from kdrun.core.failure import Held, KdrunError, LockLost
from kdrun.core.machine import boot_id, has_ended, started

log = logging.getLogger(__name__)
HEARTBEAT = 5.0
STALE = 30.0
POLL, SLOWEST = 0.2, 5.0
"""Seconds between two looks of a waiter: a tenth of the time that it has waited, within these."""
GONE = {errno.ENOENT, errno.ESTALE}
"""What becomes of a file that another process, or machine, has removed or replaced."""
LIMIT = 4096
"""Bytes. No owner writes so many."""
TRIES = 3
"""To release a lock, where the file system errs."""


@dataclass(frozen=True)
class Found:
    """What stands where a lock belongs."""

    owner: dict[str, Any]
    """Empty where it is not legible: its owner may be about to write it, or may not let us read it."""
    beat: int
    """Nanoseconds of the file system's clock."""


class Lock:
    """`with Lock(path):` waits until nobody else holds the lock.

    Args:
        wait: false: raise `Held` where somebody else does.

    Raises:
        KdrunError: no lock can be made there; says why.
    """

    def __init__(self, path: Path, wait: bool = True) -> None:
        self.path, self.wait = path, wait
        self.owner: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot_id": boot_id(),
            "started": started(os.getpid()),
            "token": os.urandom(8).hex(),
        }
        self._temporary = path.with_name(f".{path.name}.{self.owner['token']}")
        self._seen: tuple[Found, float] | None = None  # what another owner last showed, and when we first saw that
        self._other: dict[str, Any] | None = None  # who lives and holds it
        self._tried = False  # whether our name may stand there
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            signals.ON_STOP.add(self._release)
        try:
            with signals.during(f"waiting for {self.path.stem}"):
                self._wait()
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._release()

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
            raise LockLost(f"{self.path.with_suffix('')}: another process took this run over; it goes on there")

    # ---------------------------------------------------------------------------------------------- getting it

    def _wait(self) -> None:
        began, announced = time.monotonic(), False
        while not self._got():
            if self._other is not None and not self.wait:
                raise Held(f"{self.path.stem}: {_name(self._other)} is at work on it")
            if self._other is not None and not announced:
                log.info("waiting for %s, which %s is building", self.path.stem, _name(self._other))
                announced = True
            signals.poll()  # they may be put off, and the other one may be at work for long
            time.sleep(min(max(POLL, (time.monotonic() - began) / 10), SLOWEST))

    def _got(self) -> bool:
        """One look, and what can be done about what is there. While another owner lives, it is a look and no more."""
        found = self._look()
        if found is None:
            placed = self._create()
        elif found.owner == self.owner:  # the answer of a network file system was lost on its way
            placed = True
        elif self._dead(found.owner, self._silent(found)):
            placed = self._take_over(found)
        else:
            self._other, placed = found.owner, False
        if not placed or not self._confirmed():
            return False
        if found is not None and found.owner != self.owner:
            log.warning("took over %s from %s, which is gone", self.path.stem, _name(found.owner))
        return True

    def _look(self) -> Found | None:
        """Opens the file: network file systems answer from memory for up to a minute where one asks for its times."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            return None if error.errno in GONE else self._closed(error)
        try:
            about = os.fstat(file)
        except OSError:
            os.close(file)
            return None
        try:
            self._require_file(about.st_mode)
            owner = json.loads(os.read(file, LIMIT))
        except (OSError, ValueError, RecursionError):
            owner = {}
        finally:
            os.close(file)
        return Found(owner if isinstance(owner, dict) else {}, about.st_mtime_ns)

    def _closed(self, why: OSError) -> Found | None:
        """What there is to see of a file that cannot be opened: somebody else's, or no file at all."""
        try:
            about = os.lstat(self.path)
        except FileNotFoundError:
            return None
        except OSError:
            raise self._impossible(why) from None
        self._require_file(about.st_mode)
        return Found({}, about.st_mtime_ns)

    def _require_file(self, mode: int) -> None:
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "something"
            raise KdrunError(f"{self.path}: {kind} stands where a lock file belongs, not made by kdrun; remove it")

    def _silent(self, found: Found) -> float:
        """Seconds of our own clock since the owner, or his heartbeat, was seen to change."""
        if self._seen is None or self._seen[0] != found:
            self._seen = (found, time.monotonic())
        return time.monotonic() - self._seen[1]

    def _create(self) -> bool:
        """Put our name where there is none. False: another process was quicker, or removed our file."""
        try:
            self._write()
            try:
                os.link(self._temporary, self.path)  # the file appears with its content, or not at all
            except OSError as error:
                if error.errno in (errno.EEXIST, *GONE):
                    return False  # or it is ours, and we have not been told: the next look sees that
                return self._create_without_links()
            finally:
                self._discard()
        except OSError as error:
            raise self._impossible(error) from None
        return True

    def _create_without_links(self) -> bool:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(file, json.dumps(self.owner).encode())
        except OSError:  # a full disk
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def _take_over(self, dead: Found) -> bool:
        """Put our name in place of a dead owner's, unless someone else did it first."""
        try:
            self._write()
            if self._look() != dead:  # after the writing: see above
                return False
            os.replace(self._temporary, self.path)
        except OSError as error:
            if error.errno in GONE:
                return False
            raise KdrunError(
                f"{self.path}: its owner, {_name(dead.owner)}, is gone, but the file cannot be replaced "
                f"({error.strerror}); delete it"
            ) from None
        finally:
            self._discard()
        return True

    def _write(self) -> None:
        self._tried = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.write_text(json.dumps(self.owner))

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # whoever takes the lock next removes it
            self._temporary.unlink()

    def _confirmed(self) -> bool:
        """Remove what others have written and not put in place, the dead and the slow; then see whose the lock is."""
        try:
            for name in os.listdir(self.path.parent):
                start, _, token = name.rpartition(".")
                if start == f".{self.path.name}" and re.fullmatch("[0-9a-f]{16}", token):
                    self.path.with_name(name).unlink(missing_ok=True)
        except OSError as error:
            log.debug("%s cannot be cleaned (%s)", self.path.parent, error)
        found = self._look()
        return found is not None and found.owner == self.owner

    def _impossible(self, error: OSError) -> KdrunError:
        return KdrunError(f"{self.path.parent}: no lock can be made there ({error.strerror})")

    # ---------------------------------------------------------------------------------------- while it is held

    def _dead(self, other: dict[str, Any], silent: float) -> bool:
        """Whether the owner is gone: here when its process is (a suspended one lives), elsewhere when it is silent."""
        pid = other.get("pid")
        here = other.get("host") == self.owner["host"] and other.get("boot_id") == self.owner["boot_id"]
        if not here or not isinstance(pid, int) or not 0 < pid < 1 << 31:
            return silent > STALE
        begun = started(pid)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, which the system may hide
            if not begun:
                return False
        return begun != other.get("started") or has_ended(pid)  # the number may have been given to another process

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            if self.lost:
                return
            try:
                os.utime(self.path)
            except OSError as error:  # a hiccup of the file system: the next beat will tell
                log.warning("heartbeat of %s missed: %s", self.path, error)

    def _release(self) -> None:
        """Remove the lock if it is ours. What the file system has against it is said: nobody else can help it."""
        self._stop.set()
        if os.getpid() != self.owner["pid"]:  # a copy in a forked process
            return
        for left in reversed(range(TRIES if self._tried else 0)):
            try:
                if json.loads(self.path.read_text()) == self.owner:
                    self.path.unlink()
                break
            except (FileNotFoundError, NotADirectoryError, ValueError):  # not there, or not ours
                break
            except OSError as error:
                if left:
                    time.sleep(POLL)
                elif self._thread is not None:
                    log.error("%s: could not be released (%s); delete it", self.path, error.strerror)
        signals.ON_STOP.discard(self._release)


def held(path: Path) -> bool:
    """Whether a living process holds the lock, as far as one look tells: one elsewhere lives if its heartbeat is fresh
    by our own clock, which may be behind."""
    lock = Lock(path)
    try:
        found = lock._look()
    except KdrunError:  # who asks for the lock will be told
        return False
    return found is not None and not lock._dead(found.owner, abs(time.time() - found.beat / 1e9))


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
