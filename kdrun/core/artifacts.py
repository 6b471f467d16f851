"""What is made once before training and then shared: a folder named by its content, built under a lock."""

import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kdrun.core.errors import DataError
from kdrun.core.lock import Lock

log = logging.getLogger(__name__)
T = TypeVar("T")


def ensure(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built by `build(temporary folder)` unless it is there; two processes do not build it twice.

    `build` must write `spec.json`, by which a finished folder is known.
    """
    if (folder / "spec.json").is_file():
        return folder
    with Lock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / "spec.json").is_file():
            temporary = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                build(temporary)
                shutil.rmtree(folder, ignore_errors=True)  # what a crash of the file system may have left
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def ensure_readable(folder: Path, build: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` makes of the folder that `ensure` gives. A damaged one (DataError) is said and built anew, once."""
    ensure(folder, build)
    try:
        return read(folder)
    except DataError as error:
        log.warning("%s; it is built anew", error)
        with Lock(folder.with_name(f"{folder.name}.lock")):
            shutil.rmtree(folder, ignore_errors=True)
    return read(ensure(folder, build))
