"""What is made once before training and then shared: a folder named by its content, built under a lock."""

import logging
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdrun.data.views import Center, Source
from kdrun.errors import DataError
from kdrun.lock import Lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """The unlabeled images of a run, for what a method makes of them before training. Without their hidden labels."""

    images: Source
    """(N, H, W, C) uint8: the whole train array."""
    index: Tensor
    """(M,) int64 on the CPU, positions of the pool."""
    num_classes: int
    batch_size: int
    precision: str
    outputs: Path
    """Folder that holds `artifacts`."""
    judge: Callable[[Tensor, Tensor], dict[str, Any]]
    """`judge(index, label)`: `coverage` of the pool; `precision` against the hidden labels (None: nothing known)."""
    warn: Callable[[str], None]
    """Says a line in the log and keeps it in the record."""
    device: torch.device
    """The training device."""
    center: Center | None = None
    """What networks see of an image in an evaluation; None: all of it."""


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


T = TypeVar("T")


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
