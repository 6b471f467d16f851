"""What is made once and then shared: a folder named by what it is made of, built under a lock, checked when read.

This is the one policy for all that outputs/artifacts holds. `spec.json` says what a folder is made of, with the number,
bytes and sha256 of all its files and a checksum of its own. What is opened is compared with it, each time; a folder of
more than `LARGE` bytes once for each set of sizes, times and inodes, which `checked.json` in it remembers. Damage is
said in one line and built anew, and whoever holds the lock removes what killed builders left.
"""

import glob
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self, TypeVar

from kdrun.core.errors import DataError, KdrunError
from kdrun.core.files import remove, sweep, write_json
from kdrun.core.hashing import file_state, json_hash
from kdrun.core.lock import Lock, held
from kdrun.core.sums import files_in, sealed, sha256_of_all, unsealed

log = logging.getLogger(__name__)
T = TypeVar("T")
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError)  # what a file that is not as it was makes readers raise
SPEC, CHECKED, PROGRESS = "spec.json", "checked.json", "progress.json"
SUMS = "sums"  # in spec.json
LARGE = 1 << 26  # bytes; as much is hashed in a tenth of a second
Build = Callable[[Path, Callable[[], None]], Mapping[str, Any]]
Read = Callable[[Path, dict[str, Any]], T]


@dataclass(frozen=True)
class Artifact:
    """A folder `<parent>/<key>` whose `spec.json`, by which a finished one is known, says what it is made of."""

    parent: Path
    spec: Mapping[str, Any]
    """Everything that its content depends on, as JSON."""
    name: str = ""
    """Of the folder; "": its key."""

    @classmethod
    def of(cls, outputs: Path, kind: str, spec: Mapping[str, Any]) -> Self:
        """One that all runs share: `outputs/artifacts/<kind>/<key>`."""
        return cls(outputs / "artifacts" / kind, spec)

    @property
    def key(self) -> str:
        """12 hex digits."""
        return json_hash(self.spec)

    @property
    def folder(self) -> Path:
        return self.parent / (self.name or self.key)

    @property
    def lock(self) -> Lock:
        """Who holds it may write the folder."""
        folder = self.folder
        return Lock(folder.with_name(f"{folder.name}.lock"))

    def value(self, build: Callable[[Path], Mapping[str, Any]], read: Read[T]) -> T:
        """What `read(folder, spec.json)` makes of the folder, built if it is not there; two processes do not build it
        twice. A damaged one is said and built anew, once.

        Args:
            build: writes into the (temporary) folder that it is given; what it returns stands in spec.json too.

        Raises:
            DataError: what was built just now cannot be read.
        """
        folder = self.folder
        own = f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}"
        return self._value(lambda place, _: build(place), read, folder.with_name(own))

    def resumed(self, build: Build, read: Read[T]) -> T:
        """As `value`, for a build that goes on from what an earlier one left in its folder, `<key>.partial`.

        Args:
            build: `progress.json` in the folder is its own, and gone when all is built; the second argument raises
                LockLost where another process has taken over.
        """
        return self._value(build, read, self.folder.with_name(f"{self.folder.name}.partial"))

    def opened(self, read: Read[T]) -> T | None:
        """As `value`, of what has been built; None: it is not there, or damaged. The files' bytes are not compared."""
        try:
            return read(self.folder, self._found()[0])
        except (*DAMAGE, DataError) as error:
            log.debug("%s: not opened (%s)", self.folder, error)
            return None

    def _value(self, build: Build, read: Read[T], place: Path) -> T:
        try:
            value, old = self._read(read)
        except DataError as error:
            log.debug("%s", error)  # said below, where nobody else has built it anew by then
        else:
            path = self.lock.path
            if old or (path.exists() and not held(path)):  # a builder was killed when all was there but its lock
                self._tidy()
            return value
        with self.lock as lock:
            self._sweep()
            try:
                return self._read(read)[0]
            except DataError as error:
                if os.path.lexists(self.folder):
                    log.warning("%s; it is built anew", error)
                    remove(self.folder)  # now: there may be no room for two
            self._build(build, place, lock.require)
            return self._read(read)[0]

    def _tidy(self) -> None:
        """Away with what a killed builder left; and a folder from before there were checksums is given them."""
        try:
            with self.lock:
                self._sweep()
                spec, sums = self._found()
                if sums is None:
                    log.info("%s: from before there were checksums; from now on it is checked", self.folder)
                    write_json(self.folder / SPEC, self._with_sums(spec, self.folder))
        except (OSError, ValueError, KdrunError) as error:  # it may be somebody else's, who lets others read alone
            log.debug("%s: left as it is (%s)", self.folder, error)

    def _sweep(self) -> None:
        for left in self.folder.parent.glob(f"{glob.escape(self.folder.name)}.tmp-*"):
            remove(left)

    def _read(self, read: Read[T]) -> tuple[T, bool]:
        """The value, and whether its files are from before there were checksums."""
        folder = self.folder
        try:
            spec, sums = self._found()
            if sums is not None:
                self._compare(sums)
            return read(folder, spec), sums is None
        except DAMAGE as error:
            raise DataError(f"{folder}: damaged ({type(error).__name__}: {error})") from error

    def _found(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """spec.json, and what it says of the files."""
        spec = unsealed(json.loads((self.folder / SPEC).read_text()), SUMS)
        sums = spec.pop(SUMS, None)
        asked = json.loads(json.dumps(dict(self.spec)))
        if wrong := [name for name, value in asked.items() if spec.get(name) != value]:
            raise ValueError(f"{SPEC} has another {wrong[0]}")
        return spec, sums

    def _compare(self, sums: Mapping[str, Any]) -> None:
        """Raises ValueError where the files are not as they were."""
        found = self._files()
        if (len(found), _bytes(found)) != (sums["files"], sums["bytes"]):
            raise ValueError(
                f"{len(found):,} files of {_bytes(found):,} bytes, not {sums['files']:,} of {sums['bytes']:,}"
            )
        mark = _mark(found)
        if sums["bytes"] > LARGE and mark in (_CHECKED.get(self.folder), self._checked()):
            return
        if sha256_of_all(self.folder, found) != sums["sha256"]:
            raise ValueError("its files are not as they were written: their sha256 differs")
        if sums["bytes"] > LARGE:
            _CHECKED[self.folder] = mark
            try:
                write_json(self.folder / CHECKED, {"mark": mark})
            except OSError as error:  # of somebody else, say: this process remembers
                log.debug("%s: %s", self.folder / CHECKED, error)

    def _files(self, folder: Path | None = None) -> dict[str, os.stat_result]:
        found = files_in(folder or self.folder)
        return {name: stat for name, stat in found.items() if name not in (SPEC, CHECKED, PROGRESS)}

    def _checked(self) -> str | None:
        try:
            mark = json.loads((self.folder / CHECKED).read_text())["mark"]
        except DAMAGE:
            return None
        return str(mark)

    def _build(self, build: Build, place: Path, still_ours: Callable[[], None]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        try:
            figures = build(place, still_ours)
            sweep(place)  # what a killed process left of a build that went on
            spec = self._with_sums({**figures, **self.spec}, place)
            still_ours()
            write_json(place / SPEC, spec)
            (place / PROGRESS).unlink(missing_ok=True)
            os.replace(place, self.folder)
        finally:
            if not place.name.endswith(".partial"):
                remove(place)

    def _with_sums(self, spec: Mapping[str, Any], place: Path) -> dict[str, Any]:
        """What spec.json shall hold; of a large folder, it is noted that it has been read."""
        found = self._files(place)
        size = _bytes(found)
        sums = {"files": len(found), "bytes": size, "sha256": sha256_of_all(place, found)}
        if size > LARGE:
            write_json(place / CHECKED, {"mark": _mark(found)})
        return sealed({**spec, SUMS: sums})


_CHECKED: dict[Path, str] = {}


def _bytes(found: Mapping[str, os.stat_result]) -> int:
    return sum(stat.st_size for stat in found.values())


def _mark(found: Mapping[str, os.stat_result]) -> str:
    listing = "".join(f"{name}\0{file_state(stat)}\n" for name, stat in found.items())
    return sha256(os.fsencode(listing)).hexdigest()
