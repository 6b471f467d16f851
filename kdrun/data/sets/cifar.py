"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels.

The published files are Python pickles. They are read with an unpickler that builds arrays, lists and texts only, so a
file that wants to run code is refused, whoever packed it.
"""

import pickle
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from kdrun.config.dataset import PHOTO, DatasetConfig, Facts
from kdrun.core.errors import DataError
from kdrun.core.registry import register
from kdrun.core.schema import OutsideKey
from kdrun.data.arrays import Arrays
from kdrun.data.download import ensure_files, root_folder, verify
from kdrun.data.found import identity_of_copy
from kdrun.data.types import Images, Labels

File = tuple[Path, str]


class CifarConfig(DatasetConfig):
    root: Annotated[str, OutsideKey()] = "data"
    """Folder that holds, or will hold, the extracted archive."""
    download: Annotated[bool, OutsideKey()] = True
    verify_md5: bool = True
    """Refuse files that are not the published ones; false for a re-packed copy."""


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            import codecs

            return codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary of a CIFAR batch file. Raises DataError for a damaged file, and for one that wants to run code."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"dataset.root: {path}: not a readable CIFAR file ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"dataset.root: {path}: not a CIFAR file (holds a {type(content).__name__})")
    return content


class _Cifar:
    """Base of the two readers."""

    facts: ClassVar[Facts]
    label_key: ClassVar[str]
    names_key: ClassVar[str]
    listing: ClassVar[str]
    """Of the published files, see `identity_of_copy`."""

    @classmethod
    def published(cls) -> Any:
        """torchvision's class."""
        raise NotImplementedError

    @classmethod
    def files(cls, config: CifarConfig) -> tuple[list[File], list[File], File]:
        """The published files, each with its md5: of training images, of test images, of the names of the classes."""
        published = cls.published()
        folder = root_folder(config.root) / published.base_folder
        train, test = (
            [(folder / name, md5) for name, md5 in files] for files in (published.train_list, published.test_list)
        )
        return train, test, (folder / published.meta["filename"], published.meta["md5"])

    @classmethod
    def sources(cls, config: CifarConfig) -> list[Path]:
        """The files that are read."""
        train, test, meta = cls.files(config)
        return [path for path, _ in (*train, *test, meta)]

    @classmethod
    def identity(cls, config: CifarConfig) -> str | None:
        """What the run key has beside the name of the dataset; None: nothing."""
        return None if config.verify_md5 else identity_of_copy(cls.sources(config), cls.listing)

    @classmethod
    def load(cls, config: CifarConfig) -> Arrays:
        return _load(config, cls, cls.published())


def _load(config: CifarConfig, reader: type[_Cifar], published: Any) -> Arrays:
    from torchvision.datasets.utils import download_and_extract_archive

    root = root_folder(config.root)
    folder = root / published.base_folder
    train, test, meta = reader.files(config)
    ensure_files(
        root,
        [path for path, _ in (*train, *test, meta)],
        lambda: download_and_extract_archive(
            published.url, str(root), filename=published.filename, md5=published.tgz_md5
        ),
        f"the content of {published.filename}",
        config.download,
        own=None if config.verify_md5 else folder,
    )
    if config.verify_md5:
        verify([*train, *test, meta])
    mean, std = reader.facts.statistics
    names = read_pickle(meta[0]).get(reader.names_key)
    if not isinstance(names, list) or len(names) < 2:
        raise DataError(f"dataset.root: {meta[0]}: no list {reader.names_key} of two or more")
    train_images, train_labels = _batches([path for path, _ in train], reader.label_key, len(names))
    test_images, test_labels = _batches([path for path, _ in test], reader.label_key, len(names))
    return Arrays(
        train_images, train_labels, test_images, test_labels, tuple(map(str, names)), mean, std,
        source=f"dataset.root: {folder}",
    )  # fmt: skip


def _batches(paths: list[Path], label_key: str, num_classes: int) -> tuple[Images, Labels]:
    images, labels = [], []
    for path in paths:
        content = read_pickle(path)
        data, given = content.get("data"), content.get(label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise DataError(f"dataset.root: {path}: data is {found}, expected uint8 (N, 3072)")
        if not isinstance(given, list) or len(given) != len(data):
            raise DataError(f"dataset.root: {path}: {len(data)} images without as many {label_key}")
        wrong = [label for label in given if not isinstance(label, int) or not 0 <= label < num_classes]
        if wrong:
            raise DataError(f"dataset.root: {path}: {label_key}: {wrong[0]!r}, allowed 0 to {num_classes - 1}")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.asarray(given, np.int64))
    # Straight into the final layout: a joined copy in the files' layout would be another 150 MB.
    joined = np.empty((sum(map(len, images)), 32, 32, 3), np.uint8)
    return np.concatenate(images, out=joined), np.concatenate(labels)


@register("dataset", "cifar10")
class Cifar10(_Cifar):
    label_key, names_key = "labels", "label_names"
    listing = "403cfd1107958f782235fce27658d019b6967574f977e9f6c921ce165fd703af"

    class Config(CifarConfig):
        pass

    facts = Facts(
        size=32, channels=3, classes=10, train=50_000, test=10_000, download=170e6, prompts=PHOTO,
        # of the training images, as the distillation literature uses them
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    )  # fmt: skip

    @classmethod
    def published(cls) -> Any:
        from torchvision.datasets import CIFAR10

        return CIFAR10


@register("dataset", "cifar100")
class Cifar100(_Cifar):
    label_key, names_key = "fine_labels", "fine_label_names"
    listing = "8e165c5215d441edcd3d94b3356c154c65adb758d5218ae981c02f1413c177d9"

    class Config(CifarConfig):
        pass

    facts = Facts(
        size=32, channels=3, classes=100, train=50_000, test=10_000, download=169e6, prompts=PHOTO,
        # as above
        mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
    )  # fmt: skip

    @classmethod
    def published(cls) -> Any:
        from torchvision.datasets import CIFAR100

        return CIFAR100
