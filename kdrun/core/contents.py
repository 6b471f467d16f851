"""What is in many files, as one hash: read once, and remembered for as long as sizes and times of all of them stay.

`outputs/artifacts/contents` remembers it by the names, sizes and times of the files, so that a million files are asked
for their times at each start, and read once.
"""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from kdrun.core.files import remove, write_json
from kdrun.core.hashing import each_sha256, file_sha256, file_state
from kdrun.core.progress import metered
from kdrun.core.sums import SEAL, sealed, unsealed

log = logging.getLogger(__name__)
TICK, COARSE_TICK = 0.02, 2.0  # seconds between two times that a file system tells apart: most of them, FAT


class Contents:
    """Names and contents of some files.

    Args:
        folder: what the names of the files are relative to.
        outputs: the folder whose `artifacts` remember hashes.
    """

    def __init__(self, paths: Sequence[Path], folder: Path, outputs: Path) -> None:
        self.paths = paths
        self.names: list[str] = []
        self.missing: list[str] = []
        """Files that are not there, each with why."""
        self.size = 0
        """Bytes of all."""
        seen, within, self._newest = hashlib.sha256(), f"{folder}{os.sep}", 0
        for path in paths:
            try:
                place = str(path)
                found = os.stat(place)
            except OSError as error:
                self.missing.append(f"{path} ({error.strerror})")
                continue
            if not stat.S_ISREG(found.st_mode):
                self.missing.append(f"{path} (not a regular file)")
                continue
            self.names.append(place.removeprefix(within))
            self.size += found.st_size
            self._newest = max(self._newest, found.st_mtime_ns, found.st_ctime_ns)
            seen.update(os.fsencode(f"{place if place[0] == '/' else path.absolute()}\0{file_state(found)}\n"))
        self.seen = seen.hexdigest()
        """Changes with the place, size and times of each file."""
        self.note = outputs.expanduser() / "artifacts" / "contents" / f"{self.seen[:16]}.json"

    @cached_property
    def known(self) -> str | None:
        """The hash, where it is remembered."""
        try:
            return str(unsealed(json.loads(self.note.read_text()), SEAL)["files"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not noted, or not legibly: `read` reads the files for it

    def read(self) -> str:
        """The hash, 64 hex digits, the files read for it unless it is remembered. An unreadable one counts as empty."""
        if self.known is not None:
            return self.known
        digest, whole = hashlib.sha256(), self._wait()
        hashes = each_sha256(self.paths, _file_digest)
        told = metered(hashes, "hashing", len(self.paths), "files")
        for name, found in zip(self.names, told, strict=True):
            digest.update(os.fsencode(f"{name}\0{found}\n"))
            whole &= found != ""  # else it may be made legible, which changes neither its size nor its time
        self.known = digest.hexdigest()
        if whole:
            self._keep(self.known)
        return self.known

    def _keep(self, known: str) -> None:
        """Nothing depends on it but time: where it cannot be kept, it is read again."""
        try:
            if self.note.is_dir():
                remove(self.note)
            write_json(self.note, sealed({"files": known}))
        except OSError as error:
            log.debug("%s: not kept (%s)", self.note, error)

    def _wait(self) -> bool:
        """Until what is written from now on has other times than the files have. False: they are of the future."""
        tick = TICK if self._newest % 10**9 else COARSE_TICK
        left = self._newest / 1e9 + tick - time.time()
        time.sleep(min(max(left, 0), tick))
        return left <= tick


def _file_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return ""
