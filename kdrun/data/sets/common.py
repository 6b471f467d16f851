"""Published datasets of image files, in the layouts that torchvision downloads and reads.

A reader says which files there are, with their labels; `kdrun.data.listing` decodes or packs them. Where the authors
give no test images, a share of each class is drawn, always the same. `dataset.coop_split` replaces the authors' split.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from kdrun.config.dataset import Facts, FilesConfig
from kdrun.core.errors import DataError
from kdrun.core.schema import OutsideKey
from kdrun.core.seeding import subseed
from kdrun.data.download import ensure_files, root_folder
from kdrun.data.found import has_official_counts, identity_of_listing
from kdrun.data.images import list_classes
from kdrun.data.listing import Files, Listing, read_coop_split

KEY = "dataset.root"


class RootConfig(FilesConfig):
    root: Annotated[str, OutsideKey()] = "data"
    """Folder that holds, or will hold, the dataset's own folder."""


class PublishedConfig(RootConfig):
    download: Annotated[bool, OutsideKey()] = True


class DrawnConfig(PublishedConfig):
    test_fraction: float = Field(0.3, gt=0, lt=1)
    """Share of each class that is drawn as test images: the authors name none."""


class PartitionConfig(PublishedConfig):
    partition: int = Field(1, ge=1, le=10)
    """Which of the authors' splits."""


class Published:
    """Base of the readers. What is missing below `dataset.root` is downloaded where that can and may be."""

    facts: ClassVar[Facts]
    official: ClassVar[str | None] = None
    """The class of torchvision.datasets that downloads it."""
    folder: ClassVar[str]
    """Below `dataset.root`; also what must be there for nothing to be downloaded over it."""
    images: ClassVar[str]
    """Below `folder`: what the paths of CoOp's split file are relative to."""
    needed: ClassVar[Sequence[str]] = ()
    """Below `folder`: what else must be there."""
    content: ClassVar[str]
    """What to put there by hand."""

    @classmethod
    def files(cls, config: Any) -> Listing:
        root = root_folder(config.root)
        folder = root / cls.folder
        images = folder / cls.images
        needed = [images] if config.coop_split is not None else [*(folder / name for name in cls.needed), images]
        offered = isinstance(config, PublishedConfig)
        fetch = (lambda: cls.fetch(root)) if offered else None
        ensure_files(root, needed, fetch, cls.content, offered and config.download, own=folder)
        if config.coop_split is not None:
            return read_coop_split(Path(config.coop_split), images, KEY)
        return cls.read(folder, config)

    @classmethod
    def fetch(cls, root: Path) -> None:
        from torchvision import datasets

        getattr(datasets, str(cls.official))(str(root), download=True)

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        """The listing of what lies in `folder`."""
        raise NotImplementedError

    @classmethod
    def identity(cls, config: Any) -> str | None:
        """What the run key has beside the name of the dataset; None: nothing."""
        return identity_of_listing(cls, config)

    @classmethod
    def fits(cls, listing: Listing, config: Any) -> bool:
        """Whether a listing can be the published one."""
        return has_official_counts(cls.facts, listing)


def drawn(folder: Path, images: Path, config: DrawnConfig, without: Sequence[str] = ()) -> Listing:
    """images/<class>/<image>; of each class the share `test_fraction` is for the test, drawn once and for all."""
    names, paths, labels = list_classes(images, without=without, key=KEY)
    rng = np.random.default_rng(subseed(0, "test", config.name))
    label_of = np.asarray(labels)
    test: set[int] = set()
    for k in range(len(names)):
        members = rng.permutation(np.flatnonzero(label_of == k))
        test.update(members[: round(len(members) * config.test_fraction)].tolist())
    files = list(zip(paths, labels, strict=True))
    return Listing(
        [file for at, file in enumerate(files) if at not in test],
        [files[at] for at in sorted(test)],
        names,
        folder,
        KEY,
    )


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError for an unreadable or empty one."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{KEY}: {path}: not a readable list ({error})") from None
    if not lines:
        raise DataError(f"{KEY}: {path}: empty")
    return lines


def words_of(path: Path) -> list[str]:
    return [line.split()[0] for line in lines_of(path)]


def number_of(number: dict[str, int], name: Iterable[str], place: Path) -> int:
    """The number of a class that a list names."""
    found = next(iter(name), "")
    if found not in number:
        raise DataError(f"{KEY}: {place}: unknown class {found!r}")
    return number[found]


def in_range(files: Files, num_classes: int, place: Path) -> None:
    wrong = [label + 1 for _, label in files if not 0 <= label < num_classes]
    if wrong:
        raise DataError(f"{KEY}: {place}: class {wrong[0]}, allowed 1 to {num_classes}")


def by_class(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{KEY}: {path}: not a readable list of images ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(v, list) and v for v in content.values()):
        raise DataError(f"{KEY}: {path}: expected a mapping of classes to lists of images, none empty")
    return content


def read_mat(path: Path, name: str) -> npt.NDArray[Any]:
    """An array (N,) of a MATLAB file."""
    import scipy.io

    try:
        array: npt.NDArray[Any] = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)[name])
    except Exception as error:  # a damaged .mat file may raise anything
        raise DataError(f"{KEY}: {path}: not a readable file with {name} ({type(error).__name__}: {error})") from None
    return array
