"""What a dataset is to kdrun: uint8 images, in memory or in a mapped file, labels, and how they are normalised."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.config.dataset import DatasetConfig, FilesConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.data.arrays import Arrays
from kdrun.data.found import PAGE, Found, found, named_plugin
from kdrun.data.listing import read_files
from kdrun.data.unlabeled import read_unlabeled

OUTPUTS = Path("outputs")


def load_dataset(config: DatasetConfig, outputs: Path = OUTPUTS, pixels: bool = True) -> Arrays:
    """The dataset's arrays, kept for the next run of this process as long as its files stay. Split settings do not
    matter here.

    Args:
        outputs: folder whose `artifacts` hold packed images.
        pixels: false: images that have yet to be packed may be black, which is enough for shapes and labels.
    """
    files = found(config, outputs)
    whole = pixels or not isinstance(config, FilesConfig) or config.pack.size is None
    arrays = _kept(files, outputs, whole)
    channels = arrays.train_images.shape[-1]
    for name, given in (("mean", config.mean), ("std", config.std)):
        if given is not None and len(given) != channels:
            raise ConfigError(f"dataset.{name}: expected {channels} numbers, one for each channel, got {given}")
    names = config.class_names
    if names is not None and len(names) != arrays.num_classes:
        missing = f"; the dataset's own: {', '.join(arrays.class_names[:12])}" if arrays.named else ""
        raise ConfigError(f"dataset.class_names: {len(names)} names for {arrays.num_classes} classes{missing}")
    asked = {name: getattr(config, name) for name in ("mean", "std", "class_names")}
    changes: dict[str, Any] = {name: tuple(value) for name, value in asked.items() if value is not None}
    if names is not None:
        changes["named"] = True
    return dataclasses.replace(arrays, **changes) if changes else arrays


def content_of(config: DatasetConfig, outputs: Path = OUTPUTS) -> str | None:
    """Hash of a dataset's content, read now unless it is remembered; None: of files that are streamed because they are
    many.

    Raises:
        DataError: what its reader cannot find or read.
    """
    files = found(config, outputs)
    if files.contents is not None:
        return files.content()
    arrays = load_dataset(files.config, outputs)
    digest = hashlib.sha256(json.dumps([*arrays.class_names]).encode())
    for values in (arrays.train_images, arrays.train_labels, arrays.test_images, arrays.test_labels):
        digest.update(f"{values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).data)
    return digest.hexdigest()


_KEPT: dict[bool, dict[tuple[object, ...], Arrays]] = {True: {}, False: {}}  # with pixels, and without
MOST = 2  # datasets whose arrays are kept


def _kept(files: Found, outputs: Path, pixels: bool) -> Arrays:
    kept = _KEPT[pixels]
    arrays = kept.pop(files.key, None)
    if arrays is None:
        while len(kept) >= MOST:
            del kept[next(iter(kept))]  # before the next one is read: both may be large
        arrays = _read(files, outputs, pixels)
    kept[files.key] = arrays
    return arrays


def _read(files: Found, outputs: Path, pixels: bool) -> Arrays:
    config = files.config
    arrays: Arrays
    if files.listing is not None and files.contents is not None and isinstance(config, FilesConfig):
        arrays = read_files(files.listing, files.contents, config, outputs, pixels)
    else:
        arrays = _loaded(config)
    if config.unlabeled is None or arrays.num_unlabeled:
        return arrays
    height, width, channels = arrays.train_images.shape[1:]
    more, notes = read_unlabeled(config.unlabeled, height, width, channels)
    return dataclasses.replace(
        arrays, train_images=np.concatenate([arrays.train_images, more]),
        train_labels=np.concatenate([arrays.train_labels, np.full(len(more), -1)]), num_unlabeled=len(more),
        warnings=(*arrays.warnings, *notes),
    )  # fmt: skip


def _loaded(config: DatasetConfig) -> Arrays:
    part = lookup("dataset", config.name, "dataset.name")
    with named_plugin(config):
        arrays = part.load(config)
    if not isinstance(arrays, Arrays):
        raise ConfigError(f"dataset={config.name}: load gives a {type(arrays).__name__}, expected Arrays; {PAGE}")
    return arrays
