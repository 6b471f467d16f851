"""Checksums of what is read back: of files below a folder, and of JSON within itself."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdrun.core.hashing import each_sha256, known_sha256

Sum = dict[str, Any]
"""`sha256` (64 hex digits) and `size` (bytes) of a file."""
SEAL = "checksum"
"""Where JSON holds the sha256 of all else in it."""


def sum_of(path: Path) -> Sum:
    """Of the file as it is now, see `known_sha256`."""
    stat = path.stat()
    return {"sha256": known_sha256(path, stat), "size": stat.st_size}


def sums_of(folder: Path, names: Iterable[str]) -> dict[str, Sum]:
    return {name: sum_of(folder / name) for name in names}


def flaws(folder: Path, sums: Mapping[str, Sum], content: bool = True) -> dict[str, str]:
    """Name -> what is wrong with it, of files that are not as they were.

    Args:
        content: false: only whether they are there and have their size.
    """
    out = {}
    for name, known in sums.items():
        path = folder / name
        try:
            if not path.is_file():
                out[name] = "is gone"
            elif (size := path.stat().st_size) != known["size"]:
                out[name] = f"has {size:,} bytes, {known['size']:,} were written"
            elif content and sum_of(path)["sha256"] != known["sha256"]:
                out[name] = "is not as it was written (its sha256 differs)"
        except OSError as error:
            out[name] = f"cannot be read ({error.strerror})"
    return out


def files_in(folder: Path) -> dict[str, os.stat_result]:
    """Name below the folder -> stat of all files at any depth, sorted, but hidden ones, which are the system's."""
    found: dict[str, os.stat_result] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = path.stat()
    return dict(sorted(found.items()))


def sha256_of_all(folder: Path, names: Iterable[str]) -> str:
    """Of the names and contents of these files, which are read for it."""
    names = list(names)
    hashes = each_sha256(folder / name for name in names)
    listing = "".join(f"{name}\0{found}\n" for name, found in zip(names, hashes, strict=True))
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON object with its checksum in it."""
    plain = {key: part for key, part in value.items() if key != SEAL}
    return {**plain, SEAL: _sha256(json.loads(json.dumps(plain)))}


def unsealed(value: Any, since: str) -> dict[str, Any]:
    """An object that was read, without its checksum; one from before there were any is taken as it is.

    Args:
        since: an entry that only objects with a checksum have.

    Raises:
        ValueError: it is not as it was written.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    plain = {key: part for key, part in value.items() if key != SEAL}
    if value.get(SEAL) != (_sha256(plain) if SEAL in value or since in value else None):
        raise ValueError("it is not as it was written: its checksum differs")
    return plain


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
