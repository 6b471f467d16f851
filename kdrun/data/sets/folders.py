"""Folders of image files, one for each class: any tree, ImageNet (Russakovsky et al. 2015) and 100 classes of it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from kdrun.config.dataset import PHOTO, Facts, FilesConfig, OwnFilesConfig
from kdrun.core.errors import DataError
from kdrun.core.registry import register
from kdrun.core.schema import FileContent, OutsideKey
from kdrun.core.suffixes import EXTENSIONS
from kdrun.data.download import root_folder
from kdrun.data.drawing import drawn_test
from kdrun.data.found import identity_of_listing, identity_of_own
from kdrun.data.images import list_classes, passed_over
from kdrun.data.listing import Files, Listing, read_coop_split

KEY = "dataset.path"


@register("dataset", "imagefolder")
class ImageFolder:
    """path/<train>/<class>/<image> and path/<test>/<class>/<image>, or path/<class>/<image> and `test_fraction`."""

    class Config(OwnFilesConfig):
        path: Annotated[str, FileContent(suffixes=EXTENSIONS)]
        """The tree; the names and sizes of its images, not its place, count for the run key."""
        train: str = "train"
        test: str | None = None
        """Folder of test images; null: test, or val where there is no test."""
        classes: list[str] = Field(default_factory=list)
        """Class folders to take; empty: all."""
        nested: bool = False
        """Each folder that itself holds images is a class, e.g. animals/cat; false: the folder at the top is."""

    @staticmethod
    def files(config: Config) -> Listing:
        root = Path(config.path).expanduser()
        if config.coop_split is not None:
            return read_coop_split(Path(config.coop_split), root, KEY)
        test = config.test or next((name for name in ("test", "val") if _has_folders(root / name)), None)
        if test is None:
            return _drawn(root / config.train if _has_folders(root / config.train) else root, config)
        if config.test_fraction is not None:
            raise DataError(
                f"dataset.test_fraction: {root / test} has the test images of {root}; leave one of the two out"
            )
        return _with_validation(list_tree(root, config.train, test, config.classes, KEY, config.nested), test, config)

    @classmethod
    def identity(cls, config: Config) -> str | None:
        """What the run key has beside the configuration: the files that are turned; None: none is."""
        return identity_of_own(cls, config)


def _has_folders(folder: Path) -> bool:
    """Else a folder called train may be a class, of trains."""
    try:
        with os.scandir(folder) as found:
            return any(entry.is_dir() and not entry.name.startswith(".") for entry in found)
    except OSError:
        return False


def _drawn(folder: Path, config: ImageFolder.Config) -> Listing:
    """Test images are drawn from the classes of one folder. Raises DataError where nobody has said how many."""
    passed: list[Path] = []
    names, paths, labels = list_classes(folder, config.classes, (), KEY, config.nested, passed)  # what is wrong with it
    if config.test_fraction is None:
        raise DataError(
            f"{KEY}: {config.path}: no folder test or val; expected {config.path}/test/<class>/<image>, or give "
            "dataset.test_fraction=0.2, which draws a fifth of each class of a flat folder, the same for all seeds"
        )
    train, test, notes = drawn_test(list(zip(paths, labels, strict=True)), folder, config)
    return Listing(train, test, names, folder, KEY, notes=[*passed_over(passed, folder), *notes])


def _with_validation(listing: Listing, test: str, config: ImageFolder.Config) -> Listing:
    """With the folder val as official validation images, or a line that says that it is not used."""
    place = listing.folder / "val"
    if "val" in (test, config.train) or not _has_folders(place):
        return listing
    if config.val != "official":
        told = f"{place} is not used: dataset.val=official validates on it, dataset.test=val tests on it"
        return replace(listing, notes=[*listing.notes, told])
    names, paths, labels = list_classes(place, config.classes, (), KEY, config.nested)
    if odd := sorted(set(names) ^ set(listing.class_names)):
        raise DataError(f"{KEY}: {place}: its classes are not those of {config.train}: {odd[0]} is in one of them only")
    return replace(listing, val=list(zip(paths, labels, strict=True)))


class ImageNetConfig(FilesConfig):
    root: Annotated[str, OutsideKey()] = "data/imagenet"
    """Folder with train/<wnid>/<image> and val/<wnid>/<image>."""
    classes: list[str] = Field(default_factory=list)
    """Class folders (WordNet ids) to take; empty: all."""


@register("dataset", "imagenet")
class ImageNet:
    """1,281,167 training images; the 50,000 validation images are the test images, as everywhere. No download."""

    class Config(ImageNetConfig):
        pass

    facts = Facts(
        channels=3, classes=1_000, train=1_281_167, test=50_000, download=144e9,
        prompts=(
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
    )  # fmt: skip

    @staticmethod
    def files(config: ImageNetConfig) -> Listing:
        root = root_folder(config.root)
        if config.coop_split is not None:
            return read_coop_split(Path(config.coop_split), root, "dataset.root")
        return list_tree(root, "train", "val", config.classes, "dataset.root")

    @classmethod
    def identity(cls, config: ImageNetConfig) -> str | None:
        """What the run key has beside the name of the dataset; None: nothing."""
        return identity_of_listing(cls, config)

    @classmethod
    def fits(cls, listing: Listing, config: ImageNetConfig) -> bool:
        """Whether a listing can be the published one, or that of `classes`: 732 to 1,300 training images a class."""
        count = len(config.classes) or cls.facts.classes or 0
        train, test = (
            np.bincount([label for _, label in files], minlength=count) for files in (listing.train, listing.test)
        )
        whole = count != 1_000 or len(listing.train) == ImageNet.facts.train
        most = (train >= 732).all() and (train <= 1_300).all() and (test == 50).all()
        return len(listing.class_names) == count and whole and bool(most)


@register("dataset", "imagenet100")
class ImageNet100(ImageNet):
    class Config(ImageNetConfig):
        pass

    # the archives are those of all classes
    facts = Facts(channels=3, classes=100, test=5_000, download=144e9, prompts=PHOTO)


def list_tree(root: Path, train: str, test: str, classes: list[str], key: str, nested: bool = False) -> Listing:
    """root/<train>/<class>/<image> and root/<test>/<class>/<image>. DataError: a line for each odd class."""
    parts: dict[str, Files] = {}
    names: dict[str, list[str]] = {}
    passed: list[Path] = []
    for part in (train, test):
        names[part], paths, labels = list_classes(root / part, classes, (), key, nested, passed)
        parts[part] = list(zip(paths, labels, strict=True))
    odd = [
        (name, there, other)
        for there, other in ((train, test), (test, train))
        for name in set(names[there]).difference(names[other])
    ]
    if lines := [
        f"{key}: {root}: class {name} is in {there}, but not in {other}" for name, there, other in sorted(odd)
    ]:
        raise DataError(*lines)
    return Listing(parts[train], parts[test], names[train], root, key, notes=passed_over(passed, root))
