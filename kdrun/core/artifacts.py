"""What is made once and then shared: a folder named by what it is made of, built under a lock, checked when read."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from kdrun.core.errors import DataError
from kdrun.core.files import write_json
from kdrun.core.hashing import json_hash
from kdrun.core.lock import Lock

log = logging.getLogger(__name__)
T = TypeVar("T")
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError)  # what a file that is not as it was makes readers raise


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

    def value(self, build: Callable[[Path], Mapping[str, Any]], read: Callable[[Path, dict[str, Any]], T]) -> T:
        """What `read(folder, spec.json)` makes of the folder, built if it is not there; two processes do not build it
        twice. A damaged one is said and built anew, once.

        Args:
            build: writes into the (temporary) folder that it is given; what it returns stands in spec.json too.

        Raises:
            DataError: what was built just now cannot be read.
        """
        try:
            return self._read(read)
        except DataError as error:
            log.debug("%s", error)  # said below, where nobody else has built it anew by then
        with self.lock:
            try:
                return self._read(read)
            except DataError as error:
                if self.folder.exists():
                    log.warning("%s; it is built anew", error)
            self._build(build)
            return self._read(read)

    def _read(self, read: Callable[[Path, dict[str, Any]], T]) -> T:
        folder = self.folder
        try:
            return read(folder, json.loads((folder / "spec.json").read_text()))
        except DAMAGE as error:
            raise DataError(f"{folder}: damaged ({type(error).__name__}: {error})") from error

    def _build(self, build: Callable[[Path], Mapping[str, Any]]) -> None:
        folder = self.folder
        temporary = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            figures = build(temporary)
            write_json(temporary / "spec.json", {**self.spec, **figures})
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one, or what a crash of the file system left
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
