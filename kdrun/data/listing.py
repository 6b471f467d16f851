"""Datasets of image files: which files there are and their labels, and their pixels, in memory or packed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from kdrun.config.dataset import FilesConfig, facts_of
from kdrun.core.contents import Contents
from kdrun.core.errors import ConfigError, DataError
from kdrun.data.arrays import Arrays
from kdrun.data.images import decode, list_images
from kdrun.data.packed import Pack, absent
from kdrun.data.streamed import ImageFiles
from kdrun.data.types import Images, Labels

# What pixels are normalised with where a dataset states no statistics of its own.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Files = Sequence[tuple[Path, int]]


@dataclass(frozen=True)
class Listing:
    """The image files of a dataset with their labels, in the order that splits and records name."""

    train: Files
    test: Files
    class_names: Sequence[str]
    folder: Path
    """What holds them all."""
    key: str
    """The config key to blame, e.g. dataset.root."""
    val: Files = ()
    """Official validation images."""
    unlabeled: Files = ()
    """Those of `dataset.unlabeled`, with the label -1."""
    notes: Sequence[str] = ()
    """What the log and the record should say of it: what was passed over, which images are copies."""

    @property
    def parts(self) -> dict[str, Files]:
        """In the order of the arrays: training images, then the test images."""
        return {"train": self.train, "val": self.val, "unlabeled": self.unlabeled, "test": self.test}

    @property
    def paths(self) -> list[Path]:
        return [path for files in self.parts.values() for path, _ in files]

    @property
    def labels(self) -> Labels:
        """(N,), as `paths`."""
        return np.asarray([label for files in self.parts.values() for _, label in files], np.int64)

    @property
    def digest(self) -> str:
        """Hash of the classes and of the labels of each part: of all but the files' names and content."""
        counts = {name: len(files) for name, files in self.parts.items()}
        told = {"classes": list(self.class_names), **counts}
        return hashlib.sha256(json.dumps(told).encode() + self.labels.tobytes()).hexdigest()


def read_files(listing: Listing, contents: Contents, config: FilesConfig, outputs: Path, pixels: bool = True) -> Arrays:
    """The arrays of a listing. Training images: its own, the official validation images, the unlabeled ones.

    Args:
        contents: of `listing.paths`.
        pixels: false: where images have yet to be packed, black ones that take no memory stand for them, as they
            always do where the files are streamed.
    """
    key = listing.key
    if config.val == "official" and not listing.val:
        raise ConfigError(
            f"dataset.val: {config.name} has no official validation images; set it to drawn, or give dataset.coop_split"
        )
    paths, labels = listing.paths, listing.labels
    images, unreadable, packed = _pixels(contents, config, outputs, pixels, key)
    streamed = ImageFiles.of(paths, config.pixels, config.pack.crop, config.reading) if config.stream else None
    ends = np.cumsum([len(listing.train), len(listing.val), len(listing.unlabeled)])
    warnings = list(listing.notes)
    if unreadable:
        count = f"{len(unreadable)} of {len(paths)} images"
        if not config.skip_unreadable:
            blamed = {at: "dataset.unlabeled" if ends[1] <= at < ends[2] else key for at in unreadable}
            lines = [f"{blamed[at]}: unreadable image {problem}" for at, problem in unreadable.items()]
            lines[-1] += f"; dataset.skip_unreadable=true goes on without these {count}"
            raise DataError(*lines)
        warnings.append(f"{count} are unreadable and were left out, e.g. {next(iter(unreadable.values()))}")
    there = np.ones(len(paths), bool)
    there[list(unreadable)] = False
    train, val, cut = (int(there[:end].sum()) for end in ends)  # of the files that are left
    labels = labels[there]
    facts = facts_of(config.name)
    arrays = Arrays(
        images[:cut], labels[:cut], images[cut:], labels[cut:], tuple(listing.class_names), facts.mean or IMAGENET_MEAN,
        facts.std or IMAGENET_STD, num_unlabeled=cut - val, source=f"{key}: {listing.folder}", warnings=tuple(warnings),
        files=None if streamed is None else (streamed[:cut], streamed[cut:]), packed=packed,
    )  # fmt: skip
    return replace(arrays, val=np.arange(train, val)) if config.val == "official" else arrays


def _pixels(
    contents: Contents, config: FilesConfig, outputs: Path, pixels: bool, key: str
) -> tuple[Images, dict[int, str], str | None]:
    size, crop, count, how = config.size, config.pack.crop, len(contents.paths), config.reading
    pack = Pack(contents, size, crop, outputs, key, how)  # refuses files that are not there
    if config.stream:
        return np.broadcast_to(np.uint8(0), (count, config.pixels, config.pixels, 3)), {}, None
    if config.pack.size is None:
        return *decode(contents.paths, size, crop, how), None
    packed = pack.build() if pixels else pack.open()
    if packed is None:
        return np.broadcast_to(np.uint8(0), (count, size, size, 3)), {}, None
    artifact = pack.artifact
    return packed.images, packed.unreadable, None if artifact is None else artifact.key


def unlabeled_files(config: FilesConfig, passed: list[Path] | None = None) -> Files:
    """The image files of `dataset.unlabeled`, with the label -1. `passed` is given the files that are no images."""
    if config.unlabeled is None:
        return []
    folder = Path(config.unlabeled).expanduser()
    if not folder.is_dir():
        if config.pack.size is None and not config.stream:
            return []  # an array, which is read and added like any other dataset's
        how = "streamed" if config.stream else "packed"
        raise DataError(f"dataset.unlabeled: {folder}: not a folder, and only image files can be {how} with the others")
    return [(path, -1) for path in list_images(folder, "dataset.unlabeled", passed)]


def read_coop_split(path: Path, folder: Path, key: str) -> Listing:
    """The split of a `split_zhou_<Dataset>.json`: train, val and test, each a list of [path, label, class name].

    Args:
        folder: what its paths are relative to.

    Raises:
        DataError: unreadable, of another form, or with images that are not there (listed).
    """
    where = f"dataset.coop_split: {path}"
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8-sig"))
        parts = {
            name: [(folder / str(image), int(label), str(title)) for image, label, title in content[name]]
            for name in ("train", "val", "test")
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{where}: not a split file of CoOp, train, val and test as lists of [path, label, class] "
            f"({type(error).__name__}: {error})"
        ) from None
    names: dict[int, str] = {}
    for image, label, title in (entry for part in parts.values() for entry in part):
        if names.setdefault(label, title) != title:
            raise DataError(f"{where}: class {label} is called {names[label]} and, at {image}, {title}")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{where}: its labels are not 0 to {len(names) - 1}")
    files = {name: [(image, label) for image, label, _ in part] for name, part in parts.items()}
    missing = [str(image) for part in files.values() for image, _ in part if not image.is_file()]
    if missing:
        raise DataError(*absent(missing, where))
    return Listing(
        files["train"], files["test"], [names[label] for label in range(len(names))], folder, key, files["val"]
    )


class FileDataset(Protocol):
    """A registered dataset of image files: its `Config`, and which files there are; decoding is not its business."""

    Config: ClassVar[type[FilesConfig]]

    @staticmethod
    def files(config: Any) -> Listing: ...
