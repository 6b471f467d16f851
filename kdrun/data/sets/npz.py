"""Any arrays in one .npz file: train_images, train_labels, test_images, test_labels (and class_names if you like).

Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 channels, or float in [0, 1], which is rounded to
uint8. Labels are integers or names, (N,) or (N, 1). Official validation images, as MedMNIST has them, are val_images
and val_labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from kdrun.config.dataset import DatasetConfig
from kdrun.core.errors import ConfigError, DataError, allowed
from kdrun.core.files import read_npz
from kdrun.core.hashing import file_hash
from kdrun.core.registry import register
from kdrun.core.schema import FileContent
from kdrun.data.arrays import Arrays
from kdrun.data.types import Images, Labels, channel_statistics

KEY = "dataset.path"
KEYS = ("train_images", "train_labels", "test_images", "test_labels")
VAL = ("val_images", "val_labels")
LABELS = ("train_labels", "val_labels", "test_labels", "class_names")
Content = Mapping[str, npt.NDArray[Any]]


@register("dataset", "npz")
class Npz:
    class Config(DatasetConfig):
        path: Annotated[str, FileContent()]
        """The .npz file; its content, not its place, counts for the run key."""
        val: Literal["auto", "official", "drawn"] = "auto"
        """drawn: `val_fraction` of the training images, val_images among them; official: val_images alone; auto:
        official where the file has them."""
        gaps: Literal["map", "refuse"] = "map"
        """Labels that are not 0 to K - 1 (they start at 1, say, or are 3, 7 and 21): map numbers them through."""

    @staticmethod
    def sources(config: Config) -> list[Path]:
        """The files that are read."""
        return [Path(config.path).expanduser()]

    @classmethod
    def identity(cls, config: Config) -> str | None:
        """What the run key has beside the file: what is read in another way than kdrun once did."""
        try:
            return _identity(config.path, file_hash(config.path, KEY), config.val, config.gaps)
        except ConfigError:
            return None  # the check says it

    @staticmethod
    def load(config: Config) -> Arrays:
        path = Path(config.path)
        content = read_npz(path, KEY)
        _refuse_missing(content, config)
        splits = ("train", "val", "test") if VAL[0] in content else ("train", "test")
        images = {s: as_images(content[f"{s}_images"], f"{KEY}: {path}: {s}_images") for s in splits}
        shape = images["train"].shape[1:]
        for split, name in (("val", "validation"), ("test", "test")):
            if split in images and images[split].shape[1:] != shape:
                raise DataError(f"{KEY}: {path}: training images are {shape}, {name} images {images[split].shape[1:]}")
        for split in splits:
            _refuse_count(content[f"{split}_labels"], len(images[split]), f"{KEY}: {path}: {split}")
        numbered = _numbered(content, config.path, config.gaps)
        mean, std = channel_statistics(images["train"])
        train, labels, val = images["train"], numbered.labels["train"], None
        if "val" in images:
            val = np.arange(len(train), len(train) + len(images["val"]))
            train = np.concatenate([train, images["val"]])
            labels = np.concatenate([labels, numbered.labels["val"]])
        return Arrays(
            train, labels, images["test"], numbered.labels["test"], numbered.names, mean, std,
            source=f"{KEY}: {path}", val=None if config.val == "drawn" else val, named=numbered.named,
            warnings=(*numbered.notes, *_unread(content, path)),
        )  # fmt: skip


@lru_cache(maxsize=64)
def _identity(path: str, _content: str, val: str, gaps: str) -> str | None:
    """Of `Npz.identity`, which each run key asks for.

    Args:
        _content: the file's hash: a file that changes is looked at again.
    """
    content = read_npz(Path(path), KEY, LABELS)
    if not {"train_labels", "test_labels"} <= content.keys():
        return None
    numbered = _numbered(content, path, gaps)
    told = ["labels numbered through"] if numbered.notes else []
    told += ["official validation"] if "val_labels" in content and val == "auto" else []
    return ", ".join(told) or None


@dataclass(frozen=True)
class Numbered:
    """Labels as numbers of classes."""

    labels: dict[str, Labels]
    """By split."""
    names: tuple[str, ...]
    named: bool
    notes: tuple[str, ...] = ()
    """What to say where labels were not such numbers."""


def _numbered(content: Content, path: str, gaps: str) -> Numbered:
    """Raises DataError for labels that are none, or that no class is known of."""
    given = content.get("class_names")
    if given is not None and given.ndim != 1:
        raise DataError(f"{KEY}: {path}: class_names: expected a list of names, got shape {given.shape}")
    names = None if given is None else tuple(map(str, given))
    raw = {
        s: _flat(content[f"{s}_labels"], f"{path}: {s}_labels")
        for s in ("train", "val", "test")
        if f"{s}_labels" in content
    }
    found: dict[str, set[Any]] = {split: set(np.unique(array).tolist()) for split, array in raw.items()}
    if len({array.dtype.kind == "U" for array in raw.values()}) > 1:
        raise DataError(f"{KEY}: {path}: some labels are names, others are numbers")
    every = sorted(set[Any]().union(*found.values()))
    if raw["train"].dtype.kind == "U":
        return _by_name(raw, every, names, path)
    if names is None:
        beyond = max(every, default=0) > max(found["train"], default=0)
        fit = beyond or len(found["train"]) < 2 or every == list(range(len(every)))
    else:
        fit = every[-1:] < [len(names)] or len(every) != len(names)
    if fit or every[0] < 0:
        return _as_they_are(raw, names, path)
    listed = ", ".join(map(str, every[:8])) + (f", … {len(every) - 8} more" if len(every) > 8 else "")
    if gaps == "refuse":
        raise DataError(
            f"{KEY}: {path}: labels are {listed}, not 0 to {len(every) - 1}; dataset.gaps=map numbers them through"
        )
    called = f"called {', '.join(names[:8])}" if names else "called by their labels"
    note = f"{path}: labels {listed} are classes 0 to {len(every) - 1} now, {called} (dataset.gaps)"
    named = tuple(map(str, every)) if names is None else names
    return Numbered(_mapped(raw, every), named, names is not None, (note,))


def _by_name(raw: Content, every: list[Any], names: tuple[str, ...] | None, path: str) -> Numbered:
    classes = every if names is None else list(names)
    if odd := [name for name in every if name not in classes]:
        raise DataError(f"{KEY}: {path}: label {odd[0]!r} is not in class_names{allowed(odd[0], classes)}")
    return Numbered(_mapped(raw, classes), tuple(map(str, classes)), named=True)


def _mapped(raw: Content, classes: list[Any]) -> dict[str, Labels]:
    number, out = {label: k for k, label in enumerate(classes)}, {}
    for split, array in raw.items():
        found, at = np.unique(array, return_inverse=True)
        out[split] = np.array([number[label] for label in found.tolist()], np.int64)[at]
    return out


def _as_they_are(raw: Content, names: tuple[str, ...] | None, path: str) -> Numbered:
    # Without names a class is known by its images: there cannot be more classes than images.
    limit = len(raw["train"]) if names is None else len(names)
    labels = {"train": _in_range(raw["train"], f"{path}: train_labels", limit)}
    limit = int(labels["train"].max(initial=-1)) + 1 if names is None else limit
    labels |= {s: _in_range(array, f"{path}: {s}_labels", limit) for s, array in raw.items() if s != "train"}
    return Numbered(labels, names or tuple(map(str, range(limit))), names is not None)


def _refuse_missing(content: Content, config: Npz.Config) -> None:
    needed = KEYS + (VAL if config.val == "official" or set(VAL) & set(content) else ())
    if missing := [name for name in needed if name not in content]:
        has = ", ".join(content)
        near = allowed(missing[0], [name for name in content if name not in needed], 0) if len(content) else ""
        near = near if near.startswith("; nearest") else ""
        raise DataError(f"{KEY}: {config.path}: no array {', '.join(missing)} (has {has}){near}")


def _unread(content: Content, path: Path) -> list[str]:
    """A line for each array that nobody asks for."""
    known = (*KEYS, *VAL, "class_names")
    odd = [name for name in content if name not in known]
    lines = [f"{path}: array {name} is not read{allowed(name, known, 0)}" for name in odd[:8]]
    return lines + ([f"{path}: and {len(odd) - 8} more arrays are not read"] if len(odd) > 8 else [])


def _refuse_count(labels: npt.NDArray[Any], count: int, where: str) -> None:
    if labels.ndim and len(labels) != count:
        raise DataError(f"{where}: {count} images but labels of shape {labels.shape}")


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


def _flat(array: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """(N,) of (N,) or (N, 1)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        told = "; one label an image, please" if array.ndim == 2 else ""
        raise DataError(
            f"{KEY}: {where}: expected integers or names, (N,) or (N, 1), got {array.dtype} {array.shape}{told}"
        )
    return array


def _in_range(array: npt.NDArray[Any], where: str, num_classes: int) -> Labels:
    low, high = int(array.min(initial=0)), int(array.max(initial=0))  # before a cast can wrap them
    if low < 0 or high >= num_classes:
        allowed = f"allowed 0 to {num_classes - 1} (array class_names names more classes)"
        raise DataError(f"{KEY}: {where}: from {low} to {high}, {allowed}")
    return array.astype(np.int64)
