"""STL-10 (Coates et al. 2011): 5,000 training and 8,000 test images of 96x96 pixels, and 100,000 images without labels.

The unlabeled ones, of more kinds than the ten classes, join the training images in the pool, as FixMatch's authors have
it (105,000 images); `dataset.unlabeled` takes their place. The authors of the dataset name ten folds of 1,000 labels.
"""

from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from kdrun.config.dataset import PHOTO, DatasetConfig, Facts
from kdrun.core.errors import DataError
from kdrun.core.registry import register
from kdrun.core.schema import OutsideKey
from kdrun.core.texts import text_of
from kdrun.data.arrays import Arrays
from kdrun.data.download import ensure_files, root_folder, verify
from kdrun.data.found import identity_of_copy
from kdrun.data.types import Images, Labels

KEY = "dataset.root"
SIDE = 96
FOLDS = 10
CHUNK = 100  # images


@register("dataset", "stl10")
class Stl10:
    class Config(DatasetConfig):
        root: Annotated[str, OutsideKey()] = "data"
        """Folder that holds, or will hold, stl10_binary."""
        download: Annotated[bool, OutsideKey()] = True
        verify_md5: bool = True
        """Refuse files that are not the published ones; false for a re-packed copy."""
        fold: int | None = Field(None, ge=0, lt=FOLDS)
        """Which line of fold_indices.txt names the labeled images, with num_labels=1000; null: they are drawn."""

        @property
        def joins_pool(self) -> bool:
            return self.unlabeled is None

        def replace(self, **changes: Any) -> Self:
            """Who asks for another number of labels, a teacher say, asks for none of the folds."""
            return super().replace(**({"fold": None} if "num_labels" in changes else {}), **changes)

        @model_validator(mode="after")
        def one_choice_of_labels(self) -> Self:
            if self.fold is None:
                return self
            if not isinstance(self.num_labels, int):
                raise ValueError(f"fold: {self.fold} names 1,000 labeled images; give num_labels=1000")
            for name, without in (("split_file", None), ("val_fraction", 0.0), ("upstream", 0.0)):
                if getattr(self, name) != without:
                    off = "null" if without is None else 0
                    raise ValueError(f"fold: {self.fold} leaves nothing for {name}; set it to {off}")
            return self

    facts = Facts(
        size=SIDE, channels=3, classes=10, train=5_000, test=8_000, download=2640e6, prompts=PHOTO,
        mean=(0.4408, 0.4278, 0.3867), std=(0.2682, 0.2612, 0.2686),  # as USB has them (arXiv 2208.07204)
    )  # fmt: skip

    @classmethod
    def files(cls, config: Config) -> dict[str, tuple[Path, str | None]]:
        """What is read: name without its ending -> file and md5 sum; None: none is published."""
        from torchvision.datasets import STL10

        folder = root_folder(config.root) / STL10.base_folder
        summed = [(name, md5) for name, md5 in (*STL10.train_list, *STL10.test_list)]
        out: dict[str, tuple[Path, str | None]] = {Path(name).stem: (folder / name, md5) for name, md5 in summed}
        out |= {Path(name).stem: (folder / name, None) for name in (STL10.class_names_file, STL10.folds_list_file)}
        if config.unlabeled is not None:
            del out["unlabeled_X"]
        return out

    @classmethod
    def sources(cls, config: Config) -> list[Path]:
        """The files that are read."""
        return [path for path, _ in cls.files(config).values()]

    @classmethod
    def identity(cls, config: Config) -> str | None:
        """What the run key has beside the name of the dataset; None: nothing."""
        return None if config.verify_md5 else identity_of_copy(cls.sources(config))

    @classmethod
    def load(cls, config: Config) -> Arrays:
        files = _fetched(config, cls.files(config))
        names = text_of(files["class_names"], KEY).split()
        labels = {split: _labels(files[f"{split}_y"], len(names)) for split in ("train", "test")}
        parts = [_images(files[name]) for name in ("train_X", "unlabeled_X") if name in files]
        num_unlabeled = len(parts[1]) if len(parts) > 1 else 0
        train_labels = np.concatenate([labels["train"], np.full(num_unlabeled, -1, np.int64)])
        mean, std = cls.facts.statistics
        return Arrays(
            _joined(parts), train_labels, _joined([_images(files["test_X"])]), labels["test"], tuple(names), mean, std,
            num_unlabeled=num_unlabeled, folds=_folds(files["fold_indices"], len(parts[0])),
            source=f"{KEY}: {files['train_X'].parent}",
        )  # fmt: skip


def _fetched(config: Stl10.Config, files: dict[str, tuple[Path, str | None]]) -> dict[str, Path]:
    from torchvision.datasets import STL10
    from torchvision.datasets.utils import download_and_extract_archive

    root = root_folder(config.root)
    ensure_files(
        root,
        [path for path, _ in files.values()],
        lambda: download_and_extract_archive(STL10.url, str(root), filename=STL10.filename, md5=STL10.tgz_md5),
        f"the content of {STL10.filename}",
        config.download,
        own=None if config.verify_md5 else root / STL10.base_folder,
    )
    if config.verify_md5:
        verify([(path, md5) for path, md5 in files.values() if md5 is not None])
    return {name: path for name, (path, _) in files.items()}


def _images(path: Path) -> Images:
    """(N, 96, 96, 3), mapped: the file has channel by channel, column by column."""
    size = path.stat().st_size
    if not size or size % (3 * SIDE * SIDE):
        raise DataError(f"{KEY}: {path}: {size:,} bytes, expected a multiple of 3 * {SIDE} * {SIDE}")
    mapped: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r").reshape(-1, 3, SIDE, SIDE)
    return mapped.transpose(0, 3, 2, 1)


def _joined(parts: list[Images]) -> Images:
    """Into memory once, in the final layout; by some images and by channels, which is three times as fast."""
    out = np.empty((sum(map(len, parts)), SIDE, SIDE, 3), np.uint8)
    at = 0
    for part in parts:
        for first in range(0, len(part), CHUNK):
            some = part[first : first + CHUNK]
            for channel in range(3):
                out[at : at + len(some), :, :, channel] = some[..., channel]
            at += len(some)
    return out


def _labels(path: Path, num_classes: int) -> Labels:
    labels = np.fromfile(path, np.uint8).astype(np.int64) - 1
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DataError(
            f"{KEY}: {path}: labels from {labels.min() + 1} to {labels.max() + 1}, allowed 1 to {num_classes}"
        )
    return labels


def _folds(path: Path, num_train: int) -> tuple[Labels, ...]:
    """Sorted positions of the labeled images of each fold."""
    folds: list[Any] = []
    for line in text_of(path, KEY).splitlines():
        words = line.split()
        if words and not all(word.isdecimal() and int(word) < num_train for word in words):
            raise DataError(f"{KEY}: {path}: line {len(folds) + 1} must hold numbers from 0 to {num_train - 1}")
        folds += [np.unique(np.array(words, np.int64))] if words else []
    if len(folds) != FOLDS:
        raise DataError(f"{KEY}: {path}: {len(folds)} lines, expected {FOLDS} folds")
    return tuple(folds)
