"""What a dataset is to kdrun: uint8 images, in memory or in a mapped file, labels, and how they are normalised."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from kdrun.config import DatasetConfig, FilesConfig, content_hash
from kdrun.errors import ConfigError, DataError
from kdrun.registry import lookup
from kdrun.schema import FileContent, marker

if TYPE_CHECKING:
    from kdrun.data.listing import Listing
    from kdrun.data.streamed import ImageFiles

Images = npt.NDArray[np.uint8]  # (N, H, W, C)
Labels = npt.NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Arrays:
    """A whole dataset. Positions in `train_images` are the indices that splits and records name."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    num_unlabeled: int = 0
    """Training images from `dataset.unlabeled`, the last ones; their label is -1."""
    source: str = "dataset"
    """What to blame for what is wrong with them: the key and the file or folder."""
    val: Labels | None = None
    """(V,) positions in `train_images` of the official validation images; None: a part is drawn."""
    warnings: tuple[str, ...] = ()
    """What the record should say about them."""
    named: bool = True
    """False: `class_names` are mere numbers, because nobody gave names."""
    files: "tuple[ImageFiles, ImageFiles] | None" = None
    """Training and test images that are streamed; the arrays have their shapes, and black pixels."""

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            given = ", ".join(self.class_names) or "none"
            raise DataError(f"{self.source}: classes: {given}; there must be two or more")
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.ndim != 4 or images.dtype != np.uint8:
                raise DataError(
                    f"{self.source}: {split} images: expected uint8 (N, H, W, C), got {images.dtype} {images.shape}"
                )
            if labels.shape != images.shape[:1]:
                raise DataError(f"{self.source}: {split}: {len(images)} images but labels of shape {labels.shape}")
            if not len(images):
                raise DataError(f"{self.source}: {split}: no images")
            if split == "train":
                labels = labels[: len(labels) - self.num_unlabeled]
            if labels.min() < 0 or labels.max() >= self.num_classes:
                found = f"from {labels.min()} to {labels.max()}"
                raise DataError(f"{self.source}: {split} labels: {found}, allowed 0 to {self.num_classes - 1}")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Dataset(Protocol):
    """A registered dataset: its `Config`, and `load`."""

    Config: ClassVar[type[DatasetConfig]]

    @staticmethod
    def load(config: Any) -> Arrays: ...


class FileDataset(Protocol):
    """A registered dataset of image files: its `Config`, and which files there are; decoding is not its business."""

    Config: ClassVar[type[FilesConfig]]

    @staticmethod
    def files(config: Any) -> "Listing": ...


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
        from kdrun.data.listing import read_files

        arrays = read_files(_listing(schema, text, contents), config, outputs)
    else:
        arrays = lookup("dataset", config.name, "dataset.name").load(config)
    if config.unlabeled is None or arrays.num_unlabeled:
        return arrays
    from kdrun.data.unlabeled import read_unlabeled

    height, width, channels = arrays.train_images.shape[1:]
    more = read_unlabeled(config.unlabeled, height, width, channels)
    return dataclasses.replace(
        arrays, train_images=np.concatenate([arrays.train_images, more]),
        train_labels=np.concatenate([arrays.train_labels, np.full(len(more), -1)]), num_unlabeled=len(more),
    )  # fmt: skip


@lru_cache(maxsize=2)
def _outline(schema: type[FilesConfig], text: str, contents: tuple[str, ...], outputs: Path) -> Arrays:
    from kdrun.data.listing import read_files

    return read_files(_listing(schema, text, contents), schema.model_validate_json(text), outputs, pixels=False)


@lru_cache(maxsize=2)
def _listing(schema: type[FilesConfig], text: str, contents: tuple[str, ...]) -> "Listing":
    config = schema.model_validate_json(text)
    part = lookup("dataset", config.name, "dataset.name")
    listing: Listing = part.files(config)
    return listing


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""
    counts = np.stack([np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(images.shape[-1])])
    values = np.arange(256) / 255.0
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 0))
    return tuple(round(float(m), 6) for m in mean), tuple(round(max(float(s), 1e-3), 6) for s in std)
