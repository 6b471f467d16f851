"""Any arrays in one .npz file: train_images, train_labels, test_images, test_labels (and class_names if you like).

Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 channels, or float in [0, 1], which is rounded to
uint8. Labels are integers from 0.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from kdrun.config.dataset import DatasetConfig
from kdrun.core.errors import DataError
from kdrun.core.files import read_npz
from kdrun.core.registry import register
from kdrun.core.schema import FileContent
from kdrun.data.arrays import Arrays
from kdrun.data.types import Images, Labels, channel_statistics

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


@register("dataset", "npz")
class Npz:
    class Config(DatasetConfig):
        path: Annotated[str, FileContent()]
        """The .npz file; its content, not its place, counts for the run key."""

    @staticmethod
    def sources(config: Config) -> list[Path]:
        """The files that are read."""
        return [Path(config.path).expanduser()]

    @staticmethod
    def load(config: Config) -> Arrays:
        path = Path(config.path)
        content = read_npz(path, "dataset.path")
        missing = [key for key in KEYS if key not in content]
        if missing:
            raise DataError(f"dataset.path: {path}: no array {', '.join(missing)} (has {', '.join(content)})")
        train, test = (
            as_images(content[f"{s}_images"], f"dataset.path: {path}: {s}_images") for s in ("train", "test")
        )
        if train.shape[1:] != test.shape[1:]:
            raise DataError(
                f"dataset.path: {path}: training images are {train.shape[1:]}, test images {test.shape[1:]}"
            )
        names = content.get("class_names")
        named = names is not None
        if names is not None and names.ndim != 1:
            raise DataError(f"dataset.path: {path}: class_names: expected a list of names, got shape {names.shape}")
        # Without names a class is known by its images: there cannot be more classes than images.
        limit = len(train) if names is None else len(names)
        train_labels = _labels(content["train_labels"], f"{path}: train_labels", limit)
        if names is None:
            limit = int(train_labels.max(initial=-1)) + 1
            names = np.arange(limit)
        test_labels = _labels(content["test_labels"], f"{path}: test_labels", limit)
        mean, std = channel_statistics(train)
        return Arrays(
            train, train_labels, test, test_labels, class_names=tuple(map(str, names)), mean=mean, std=std,
            source=f"dataset.path: {path}", named=named,
        )  # fmt: skip


def as_images(array: npt.NDArray[Any], where: str) -> Images:
    """Contiguous uint8 (N, H, W, C) of what this format allows. Raises DataError that begins with `where`."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[-1] > 4 and array.shape[1] <= 4:
        array = array.transpose(0, 2, 3, 1)
    if 0 in array.shape:
        raise DataError(f"{where}: no images; expected (N, H, W[, C]) with N, C > 0, got {array.shape}")
    if array.ndim != 4 or array.shape[-1] > 4:
        raise DataError(f"{where}: expected (N, H, W), (N, H, W, C) or (N, C, H, W), got {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise DataError(f"{where}: float images must lie in [0, 1]")
        array = np.rint(array * 255)
    elif array.dtype != np.uint8:
        raise DataError(f"{where}: expected uint8 or float in [0, 1], got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _labels(array: npt.NDArray[Any], where: str, num_classes: int) -> Labels:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"dataset.path: {where}: expected integers (N,), got {array.dtype} {array.shape}")
    low, high = int(array.min(initial=0)), int(array.max(initial=0))  # before a cast can wrap them
    if low < 0 or high >= num_classes:
        allowed = f"allowed 0 to {num_classes - 1} (array class_names names more classes)"
        raise DataError(f"dataset.path: {where}: from {low} to {high}, {allowed}")
    return array.astype(np.int64)
