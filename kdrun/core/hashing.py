"""Hashes of files and folders, remembered while their size and time stay, and of plain values."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdrun.core.errors import ConfigError
from kdrun.core.schema import FileContent


def json_hash(value: Any) -> str:
    """12 hex digits of a value that JSON can write, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Of the content, read now and in parts: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: str, key: str, file: FileContent) -> str:
    """What stands in the run key for a field that is marked so."""
    if file.or_name and not os.path.exists(os.path.expanduser(path)):
        return path
    return file_hash(path, key, file.whole)


def file_hash(path: str, key: str, whole: bool = False) -> str:
    """sha256 of a file's content, remembered while its size and time stay; `key` is blamed when it is absent.

    Of a folder: of the names and sizes of all files in it, with `whole` of the names and contents. A file that was
    there in the check and is gone when its run begins keeps its hash: the run keeps its directory, and reading the file
    says what is wrong.
    """
    try:
        place = Path(path).expanduser()
        stat = place.stat()
        if whole and place.is_dir():
            files = sorted(_files_in(place, ()))
            listing = "".join(f"{p.relative_to(place).as_posix()}\0{file_hash(str(p), key)}\n" for p in files)
            _LAST[path] = hashlib.sha256(os.fsencode(listing)).hexdigest()
        else:
            _LAST[path] = _file_hash(str(place), stat.st_size, stat.st_mtime_ns)
    except RuntimeError:
        raise ConfigError(f"{key}: {path}: no such home directory; write the path out") from None
    except OSError as error:
        if path not in _LAST:
            raise ConfigError(f"{key}: {path}: cannot be read ({error.strerror})") from None
    return _LAST[path]


_LAST: dict[str, str] = {}


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    if Path(path).is_dir():
        files = sorted(_files_in(Path(path), ()))
        listing = "".join(f"{p.relative_to(path).as_posix()}\0{p.stat().st_size}\n" for p in files)
        return hashlib.sha256(os.fsencode(listing)).hexdigest()
    return file_sha256(Path(path))


def _files_in(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files at any depth, through links too, but not round a loop."""
    real = folder.resolve()
    for entry in folder.iterdir():
        if entry.is_dir():
            if real not in above:
                yield from _files_in(entry, (*above, real))
        elif entry.is_file():
            yield entry
