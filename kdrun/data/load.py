"""What a dataset is to kdrun: uint8 images, in memory or in a mapped file, labels, and how they are normalised."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.config.dataset import DatasetConfig, FilesConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.hashing import content_hash
from kdrun.core.registry import line_in_plugin, lookup
from kdrun.core.schema import FileContent, marker
from kdrun.data.arrays import Arrays
from kdrun.data.listing import Listing, read_files
from kdrun.data.unlabeled import read_unlabeled

OUTPUTS = Path("outputs")


def load_dataset(config: DatasetConfig, outputs: Path = OUTPUTS, pixels: bool = True) -> Arrays:
    """The dataset's arrays, kept for the next run of this process. Split settings do not matter here.

    Args:
        outputs: folder whose `artifacts` hold packed images.
        pixels: false: images that have yet to be packed may be black, which is enough for shapes and labels.
    """
    # Runs of a sweep differ in labels and seeds, not in images.
    plain = config.replace(
        num_labels=None, split_seed=None, split_file=None, val_seed=0, val_fraction=0.0, mean=None, std=None,
        class_names=None, upstream=0.0, part="downstream", resident="auto",
    )  # fmt: skip
    fields = type(config).model_fields.items()
    files = [(name, getattr(plain, name), file) for name, field in fields if (file := marker(field, FileContent))]
    contents = tuple(content_hash(path, f"dataset.{name}", file) for name, path, file in files if path is not None)
    if pixels or not isinstance(config, FilesConfig) or config.pack.size is None:
        arrays = _load(type(config), plain.model_dump_json(), contents, outputs)
    else:
        arrays = _outline(type(config), plain.model_dump_json(), contents, outputs)
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


@lru_cache(maxsize=2)
def _load(schema: type[DatasetConfig], text: str, contents: tuple[str, ...], outputs: Path) -> Arrays:
    config = schema.model_validate_json(text)
    arrays: Arrays
    if isinstance(config, FilesConfig) and issubclass(schema, FilesConfig):
        arrays = read_files(_listing(schema, text, contents), config, outputs)
    else:
        arrays = _loaded(config)
    if config.unlabeled is None or arrays.num_unlabeled:
        return arrays
    height, width, channels = arrays.train_images.shape[1:]
    more = read_unlabeled(config.unlabeled, height, width, channels)
    return dataclasses.replace(
        arrays, train_images=np.concatenate([arrays.train_images, more]),
        train_labels=np.concatenate([arrays.train_labels, np.full(len(more), -1)]), num_unlabeled=len(more),
    )  # fmt: skip


@lru_cache(maxsize=2)
def _outline(schema: type[FilesConfig], text: str, contents: tuple[str, ...], outputs: Path) -> Arrays:
    return read_files(_listing(schema, text, contents), schema.model_validate_json(text), outputs, pixels=False)


@lru_cache(maxsize=2)
def _listing(schema: type[FilesConfig], text: str, contents: tuple[str, ...]) -> Listing:
    config = schema.model_validate_json(text)
    part = lookup("dataset", config.name, "dataset.name")
    with _plugins_named(config):
        listing = part.files(config)
    if not isinstance(listing, Listing):
        raise ConfigError(f"dataset={config.name}: files gives a {type(listing).__name__}, expected Listing; {PAGE}")
    return listing


PAGE = "see docs/extend/dataset.md"


def _loaded(config: DatasetConfig) -> Arrays:
    part = lookup("dataset", config.name, "dataset.name")
    with _plugins_named(config):
        arrays = part.load(config)
    if not isinstance(arrays, Arrays):
        raise ConfigError(f"dataset={config.name}: load gives a {type(arrays).__name__}, expected Arrays; {PAGE}")
    return arrays


@contextmanager
def _plugins_named(config: DatasetConfig) -> Iterator[None]:
    """What a user's reader raises, in one line with its place."""
    try:
        yield
    except (KdrunError, OSError, MemoryError):
        raise
    except Exception as error:
        place = line_in_plugin(error)
        if place is None:
            raise
        raise ConfigError(f"dataset={config.name}: {place}: {type(error).__name__}: {error}") from error
