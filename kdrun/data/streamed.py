"""Image files in the place of a tensor of images: decoded when they are asked for, packed nowhere.

A batch's files are decoded by worker processes (`kdrun.data.loader.Loader`), those of an evaluation by threads, which
start at once and leave nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdrun.config.dataset import Reading
from kdrun.core.errors import DataError
from kdrun.core.later import later
from kdrun.core.machine import cores
from kdrun.data.images import decoded
from kdrun.data.reading import PLAIN

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = later("torch")  # which files there are is asked without it

MOST = 16  # worker processes that are started without being asked for


@dataclass(frozen=True)
class ImageFiles:
    """N image files as if they were a tensor (N, size, size, 3) uint8 on the CPU, to whoever asks for rows of it."""

    paths: npt.NDArray[np.bytes_]
    """One array and no Python objects: what they count would be written to, and so copied, in every worker."""
    size: int
    crop: str
    workers: int = 0
    how: Reading = PLAIN

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def of(cls, paths: Sequence[Path], size: int, crop: str, how: Reading = PLAIN) -> ImageFiles:
        return cls(np.array([os.fsencode(path) for path in paths], np.bytes_), size, crop, how=how)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.paths), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, part: slice) -> ImageFiles:
        return replace(self, paths=self.paths[part])

    def named(self, content: str) -> str:
        """What names their pixels, by the hash of the files and how they are decoded."""
        return f"{content} {self.size} {self.crop} {self.how} Pillow {version('Pillow')}"

    def path(self, position: int) -> Path:
        return Path(os.fsdecode(bytes(self.paths[position])))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """(B, size, size, 3) uint8, decoded as `dataset.pack` would have. Raises DataError for unreadable files."""
        return next(self.batches([index]))

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """`index_select` of one index after the other; meanwhile threads decode the files of the next."""
        ahead = max(map(len, indices), default=0)
        paths = [self.path(at) for index in indices for at in index.tolist()]
        images = decoded(paths, self.size, self.crop, self.how, self.workers, ahead)
        for index in indices:
            out = np.empty((len(index), *self.shape[1:]), np.uint8)
            unreadable = []
            for row, image in zip(out, images, strict=False):
                if isinstance(image, str):
                    unreadable.append(image)
                else:
                    row[...] = image
            refuse(unreadable)
            yield torch.from_numpy(out)


def refuse(unreadable: Sequence[str]) -> None:
    """Raises DataError, one line for each file that could not be decoded."""
    if unreadable:
        raise DataError(
            *(f"dataset.stream: unreadable image {problem}" for problem in unreadable[:-1]),
            f"dataset.stream: unreadable image {unreadable[-1]}; remove it, or pack the images "
            "(dataset.stream=false), which lists all unreadable ones and can leave them out",
        )


def num_workers(wanted: int | str) -> int:
    """Worker processes for `execution.workers`; auto: a core each but one, which the training has, at most 16."""
    return min(max(cores() - 1, 1), MOST) if isinstance(wanted, str) else wanted
