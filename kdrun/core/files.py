"""Files written whole (a temporary name beside the target, fsync, then rename), and arrays read with care."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import stat
import threading
import warnings
import zipfile
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.core.errors import ConfigError, DataError
from kdrun.core.machine import boot_id

if TYPE_CHECKING:
    import numpy.typing as npt

LONGEST = 200  # characters of an error that is told


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path; on success it takes the place of `path`, on failure it is removed and `path` stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with named(path):
            yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, gone at the end with all that `put_in_place` has not moved out of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary(target)
    folder.mkdir()
    try:
        with named(target):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(target: Path) -> Path:
    """Beside the target and named after it; those of processes that were killed in it are removed.

    Only a process of this machine can be known to be gone. What others left, who holds a lock sweeps away.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.tmp-*"):
        if _dead(left.name.rpartition(".tmp-")[2]):
            remove(left)
    return target.with_name(f".{target.name}.tmp-{_machine()}-{os.getpid()}-{threading.get_ident()}")


def _dead(owner: str) -> bool:
    """Whether a process of this machine, of the name that its temporary files have, is gone."""
    machine, _, rest = owner.partition("-")
    pid = rest.partition("-")[0]
    return machine == _machine() and pid.isdecimal() and not Path(f"/proc/{pid}").exists()


@lru_cache(maxsize=1)
def _machine() -> str:
    """8 hex digits: this boot of this machine, and this set of process ids; without /proc, nobody counts as gone."""
    boot = boot_id() or os.urandom(8).hex()
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:8]


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders of killed processes. Who calls it is the only one who writes there."""
    for left in folder.glob(".*.tmp-*"):
        remove(left)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_in_place(path: Path, target: Path) -> None:
    """Move a file or a folder out of a staged folder, in which a folder that is replaced is left."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if target.is_dir():
        os.replace(target, path.with_name(f"{path.name}.before"))
    os.replace(path, target)
    _sync(target.parent)


def _sync(folder: Path) -> None:
    """Else a rename may not survive a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """A full disk does not say which file it was that did not fit; this adds it to the error."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def regular(path: Path) -> Path:
    """The path. Raises OSError for what is no regular file: opening a pipe or a device may wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        code = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(code, os.strerror(code) if path.is_dir() else "not a regular file", str(path))
    return path


def reason(error: BaseException) -> str:
    """What an error says, on one line and without the path that stands beside it."""
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]} …") or type(error).__name__


def npz_arrays(path: Path, only: Collection[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an .npz file, or those of some names that it has, without unpickling anything.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, not an .npz file, with pickled objects, or larger than the memory; says which.
    """
    import numpy as np

    try:
        if not zipfile.is_zipfile(regular(path)):
            raise ValueError("it is no zip archive, or a truncated one")  # NumPy would advise to unpickle it
        with warnings.catch_warnings(), np.load(path, allow_pickle=False) as file:
            warnings.simplefilter("ignore")  # of what a damaged header looks like
            arrays = {name: file[name] for name in file.files if only is None or name in only}
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive may raise anything, of zipfile, of zlib, of Python's own parser
        raise ValueError(reason(error)) from None
    if alien := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{alien[0]} is not an array")
    return arrays


def read_npz(path: Path, key: str, only: Collection[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """As `npz_arrays`, of a file that the user has named.

    Raises:
        DataError: names `key` and the file.
    """
    try:
        return npz_arrays(path.expanduser(), only)
    except FileNotFoundError:
        raise DataError(f"{key}: {path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{key}: {path}: not a readable .npz file without pickles ({error})") from None


def folder(given: str | Path, key: str) -> Path:
    """A folder that is read. Raises ConfigError where there is none."""
    path = Path(given).expanduser()
    try:
        if path.is_dir():
            return path
        problem = "not a folder" if path.exists() else "no such folder"
    except OSError as error:  # a name that is too long, a folder that may not be searched
        problem = reason(error)
    raise ConfigError(f"{key}: {given}: {problem}")


def place_for(given: str | Path, key: str) -> Path:
    """A file that is about to be written. Raises ConfigError where its folder is missing, or it is a folder itself."""
    path = Path(given).expanduser()
    folder(path.parent, key)
    try:
        if not path.is_dir():
            return path
        problem = "is a folder; name a file"
    except OSError as error:
        problem = reason(error)
    raise ConfigError(f"{key}: {given}: {problem}")


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """UTF-8; of a name that is none, the bytes that are not are written as escapes, which JSON and YAML read back."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
