"""Street View House Numbers (Netzer et al. 2011): 73,257 training and 26,032 test images of 32x32 pixels.

With `extra` its 531,131 easier images are training images too, behind the others. Never mirrored: a mirrored digit is
another shape.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np

from kdrun.config.dataset import PHOTO, DatasetConfig, Facts
from kdrun.core.errors import DataError
from kdrun.core.registry import register
from kdrun.core.schema import OutsideKey
from kdrun.data.arrays import Arrays
from kdrun.data.download import ensure_files, root_folder, verify
from kdrun.data.found import identity_of_copy
from kdrun.data.types import Images, Labels


@register("dataset", "svhn")
class Svhn:
    class Config(DatasetConfig):
        mirror: bool = False
        root: Annotated[str, OutsideKey()] = "data"
        """Folder that holds, or will hold, train_32x32.mat and test_32x32.mat."""
        download: Annotated[bool, OutsideKey()] = True
        verify_md5: bool = True
        """Refuse files that are not the published ones; false for a re-packed copy."""
        extra: bool = False
        """Whether extra_32x32.mat belongs to the training images, 604,388 then: labels are drawn among all of them, as
        FixMatch's authors do. Another 1.3 GB to download, 1.9 GB of pixels in memory and 3.5 GB while it is read."""

    facts = Facts(
        size=32, channels=3, classes=10, train=73_257, test=26_032, download=246e6, prompts=PHOTO,
        mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970),
    )  # fmt: skip

    @classmethod
    def sources(cls, config: Config) -> list[Path]:
        """The files that are read."""
        from torchvision.datasets import SVHN

        return [root_folder(config.root) / SVHN.split_list[split][1] for split in cls.parts(config)]

    @classmethod
    def parts(cls, config: Config) -> tuple[str, ...]:
        """torchvision's names of the files."""
        return ("train", "test", "extra") if config.extra else ("train", "test")

    @classmethod
    def identity(cls, config: Config) -> str | None:
        """What the run key has beside the name of the dataset; None: nothing."""
        return None if config.verify_md5 else identity_of_copy(cls.sources(config))

    @classmethod
    def load(cls, config: Config) -> Arrays:
        from torchvision.datasets import SVHN
        from torchvision.datasets.utils import download_url

        root = root_folder(config.root)
        parts: dict[str, tuple[Images, Labels]] = {}
        for split in cls.parts(config):
            url, name, md5 = SVHN.split_list[split]
            path = root / name

            def fetch(url: str = url, name: str = name, md5: str = md5) -> None:
                download_url(url, str(root), name, md5)

            ensure_files(root, [path], fetch, name, config.download)
            if config.verify_md5:
                verify([(path, md5)])
            images, labels = _read(path)
            parts[split] = (images if split == "extra" else np.ascontiguousarray(images)), labels
        mean, std = cls.facts.statistics
        if config.extra:
            parts["train"] = _joined(parts["train"], parts.pop("extra"))
        return Arrays(
            *parts["train"], *parts["test"], class_names=tuple("0123456789"),
            mean=mean, std=std, source=f"dataset.root: {root}",
        )  # fmt: skip


def _joined(one: tuple[Images, Labels], other: tuple[Images, Labels]) -> tuple[Images, Labels]:
    """Straight into the final layout: of the larger one there is no other copy than that of its file."""
    images = np.empty((len(one[0]) + len(other[0]), *one[0].shape[1:]), np.uint8)
    return np.concatenate([one[0], other[0]], out=images), np.concatenate([one[1], other[1]])


def _read(path: Path) -> tuple[Images, Labels]:
    """Images in the layout of the file."""
    import scipy.io

    try:
        content: dict[str, Any] = scipy.io.loadmat(path)
        images, labels = content["X"], content["y"]
    except Exception as error:  # a damaged .mat file may raise anything
        raise DataError(f"dataset.root: {path}: not a readable SVHN file ({type(error).__name__}: {error})") from None
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise DataError(f"dataset.root: {path}: X is {images.dtype} {images.shape}, expected uint8 (32, 32, 3, N)")
    if not np.isin(labels, np.arange(11)).all():
        raise DataError(f"dataset.root: {path}: y ({labels.dtype}) holds more than the whole numbers 0 to 10")
    digits = labels.reshape(-1).astype(np.int64)
    digits[digits == 10] = 0  # the published files call the digit 0 class 10
    return images.transpose(3, 0, 1, 2), digits
