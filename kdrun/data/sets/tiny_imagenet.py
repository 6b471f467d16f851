"""Tiny-ImageNet."""

from pathlib import Path
from typing import Any

from pydantic import Field

from kdrun.config.dataset import PHOTO, Facts
from kdrun.core.registry import register
from kdrun.data.images import list_classes
from kdrun.data.listing import Listing
from kdrun.data.sets.common import KEY, Published, PublishedConfig, lines_of, number_of, words_of


@register("dataset", "tiny_imagenet")
class TinyImageNet(Published):
    """Tiny-ImageNet (Le and Yang 2015): 100,000 training images of 64x64 pixels; its 10,000 validation images test."""

    class Config(PublishedConfig):
        size: int = Field(64, gt=0)

    facts = Facts(size=64, channels=3, classes=200, train=100_000, test=10_000, download=248e6, prompts=PHOTO)
    folder, images = "tiny-imagenet-200", "train"
    needed = ("wnids.txt", "val/val_annotations.txt")
    content = "the content of tiny-imagenet-200.zip"

    @classmethod
    def fetch(cls, root: Path) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip", str(root), md5="90528d7ca1a48142e341f4ef8d21d0de"
        )

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        names, paths, labels = list_classes(folder / "train", words_of(folder / "wnids.txt"), key=KEY)
        number = {name: k for k, name in enumerate(names)}
        place = folder / "val" / "val_annotations.txt"
        rows = [line.split("\t") for line in lines_of(place)]
        test = [(folder / "val" / "images" / row[0], number_of(number, row[1:2], place)) for row in rows]
        return Listing(list(zip(paths, labels, strict=True)), test, names, folder, KEY)
