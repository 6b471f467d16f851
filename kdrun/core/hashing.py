"""Hashes of files and folders, remembered while their size and time stay, and of plain values."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from errno import ENOENT
from pathlib import Path
from threading import Event
from typing import Any

from kdrun.core.errors import ConfigError, MissingFile
from kdrun.core.machine import cores
from kdrun.core.remembered import Remembered
from kdrun.core.schema import FileContent
from kdrun.core.suffixes import is_image

CHUNK = 1 << 24  # bytes
PART = 64  # files that a thread is handed at once: a task for each of a million would take gigabytes
FRESH = 2_000_000_000  # ns; what was written so lately may be written again without another time in its stat


def json_hash(value: Any) -> str:
    """12 hex digits of a value that JSON can write, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Of the content, read now and in parts: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def each_sha256(paths: Iterable[Path], of: Callable[[Path], str] = file_sha256) -> Iterator[str]:
    """Of each in turn; threads read ahead. Who is interrupted meanwhile does not wait for the files that are left."""
    files, stopped = list(paths), Event()
    size = max(min(len(files) // (8 * cores()), PART), 1)

    def of_part(at: int) -> list[str]:
        return [of(path) for path in files[at : at + size] if not stopped.is_set()]

    pool = ThreadPoolExecutor(cores(), "hash")
    try:
        for found in pool.map(of_part, range(0, len(files), size)):
            yield from found
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def sha256_of_first(path: Path, size: int) -> "hashlib._Hash":
    """The running digest of the first bytes of a file. Raises ValueError where it has fewer."""
    digest, left = hashlib.sha256(), size
    with path.open("rb") as file:
        while left and (part := file.read(min(left, CHUNK))):
            digest.update(part)
            left -= len(part)
    if left:
        raise ValueError(f"{path.name} is {left:,} bytes shorter than its note says")
    return digest


def known_sha256(path: Path, stat: os.stat_result) -> str:
    """As `file_sha256`; read again only where its times, size or place on the disk have changed."""
    state = file_state(stat)
    known = _KNOWN.get(str(path))
    if known is None or known[0] != state:
        known = (state, file_sha256(path))
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > FRESH:
            _KNOWN[str(path)] = known
    return known[1]


_KNOWN: dict[str, tuple[str, str]] = {}


def file_state(stat: os.stat_result) -> str:
    """Another one whenever a file was written, replaced, moved or touched."""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def content_hash(path: str, key: str, file: FileContent) -> str:
    """What stands in the run key for a field that is marked so."""
    if file.or_name and not os.path.exists(os.path.expanduser(path)):
        return path
    return file_hash(path, key, file)


def file_hash(path: str, key: str, file: FileContent | None = None) -> str:
    """sha256 of a file's content, remembered while its size and times stay; `key` is blamed when it is absent.

    Of a folder: see `FileContent`. A file that was there in the check and is gone when its run begins keeps its hash:
    the run keeps its directory, and reading the file says what is wrong.
    """
    file = file or FileContent()
    try:
        place = Path(path).expanduser()
        stat = place.stat()
        if place.is_dir():
            found = _FOLDERS.value((str(place), file.whole, file.suffixes), lambda: _folder_hash(place, key, file))
        else:
            found = known_sha256(place, stat)
        _LAST[path] = found
    except RuntimeError:
        raise ConfigError(f"{key}: {path}: no such home directory; write the path out") from None
    except OSError as error:
        if path not in _LAST:
            text = f"{key}: {path}: cannot be read ({error.strerror})"
            raise (MissingFile(text, file=path) if error.errno == ENOENT else ConfigError(text)) from None
    return _LAST[path]


_LAST: dict[str, str] = {}
_FOLDERS: Remembered[tuple[str, bool, frozenset[str] | None], str] = Remembered()


def _folder_hash(folder: Path, key: str, file: FileContent) -> str:
    files = sorted(_files_in(folder, (), file.suffixes))
    told = (file_hash(str(path), key) if file.whole else path.stat().st_size for path in files)
    listing = "".join(f"{p.relative_to(folder).as_posix()}\0{what}\n" for p, what in zip(files, told, strict=True))
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def _files_in(folder: Path, above: tuple[Path, ...], suffixes: frozenset[str] | None) -> Iterator[Path]:
    """All files at any depth, through links too, but not round a loop."""
    real = folder.resolve()
    for entry in folder.iterdir():
        if suffixes is not None and entry.name.startswith("."):
            continue
        if entry.is_dir():
            if real not in above:
                yield from _files_in(entry, (*above, real), suffixes)
        elif entry.is_file() and (suffixes is None or is_image(entry, suffixes)):
            yield entry
