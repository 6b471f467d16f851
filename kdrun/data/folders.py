"""Folders of image files, decoded once into memory at one size: Food-101 and any user's tree."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from kdrun.config import DatasetConfig
from kdrun.data.dataset import Arrays, Images, Labels
from kdrun.data.files import decode, ensure_files, list_classes, root_folder
from kdrun.errors import DataError
from kdrun.registry import register
from kdrun.schema import FileContent, OutsideKey

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register("dataset", "imagefolder")
class ImageFolder:
    """path/<train>/<class>/<image> and path/<test>/<class>/<image>."""

    class Config(DatasetConfig):
        path: Annotated[str, FileContent()]
        """The tree; the names and sizes of its files, not its place, count for the run key."""
        size: int = Field(224, gt=0)
        """Side in pixels: short side resized, center square kept."""
        train: str = "train"
        test: str | None = None
        """Folder of test images; null: test, or val where there is no test."""
        classes: list[str] = Field(default_factory=list)
        """Class folders to take; empty: all."""

    @staticmethod
    def load(config: Config) -> Arrays:
        root = Path(config.path).expanduser()
        names, train_paths, train_labels = list_classes(root / config.train, config.classes)
        test = config.test or next((name for name in ("test", "val") if (root / name).is_dir()), None)
        if test is None:
            raise DataError(f"dataset.path: {root}: no folder test or val; expected {root}/test/<class>/<image>")
        test_names, test_paths, test_labels = list_classes(root / test, config.classes)
        if names != test_names:
            odd = min(set(names) ^ set(test_names))
            there, absent = (config.train, test) if odd in names else (test, config.train)
            raise DataError(f"dataset.path: {root}: class {odd} is in {there}, but not in {absent}")
        return Arrays(
            decode(train_paths, config.size, "dataset.path"), np.asarray(train_labels),
            decode(test_paths, config.size, "dataset.path"), np.asarray(test_labels),
            tuple(names), IMAGENET_MEAN, IMAGENET_STD, source=f"dataset.path: {root}",
        )  # fmt: skip


@register("dataset", "food101")
class Food101:
    """Food-101 (Bossard et al. 2014): 75,750 training and 25,250 test images, in the layout of torchvision."""

    class Config(DatasetConfig):
        root: Annotated[str, OutsideKey()] = "data"
        """Folder that holds, or will hold, food-101/."""
        download: Annotated[bool, OutsideKey()] = True
        size: int = Field(224, gt=0)
        """Side in pixels: short side resized, center square kept."""

    @staticmethod
    def load(config: Config) -> Arrays:
        from torchvision import datasets

        root = root_folder(config.root)
        folder = root / "food-101"
        lists = {split: folder / "meta" / f"{split}.json" for split in ("train", "test")}
        ensure_files(
            root, [*lists.values(), folder / "images"], lambda: datasets.Food101(str(root), download=True),
            "the content of food-101.tar.gz", config.download, own=folder,
        )  # fmt: skip
        listed = {split: _listed(path) for split, path in lists.items()}
        names = sorted(listed["train"])
        if names != sorted(listed["test"]):
            raise DataError(f"dataset.root: {folder / 'meta'}: train.json and test.json name different classes")
        parts: dict[str, tuple[Images, Labels]] = {}
        for split, by_class in listed.items():
            files = [
                (folder / "images" / f"{image}.jpg", k) for k, name in enumerate(names) for image in by_class[name]
            ]
            paths, labels = [path for path, _ in files], np.asarray([label for _, label in files])
            parts[split] = decode(paths, config.size, "dataset.root"), labels
        return Arrays(
            *parts["train"], *parts["test"], class_names=tuple(names), mean=IMAGENET_MEAN, std=IMAGENET_STD,
            source=f"dataset.root: {folder}",
        )  # fmt: skip


def _listed(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"dataset.root: {path}: not a readable list of images ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(v, list) and v for v in content.values()):
        raise DataError(f"dataset.root: {path}: expected a mapping of classes to lists of images, none empty")
    return content
