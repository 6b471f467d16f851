"""The ten sets of the few-shot literature on CLIP, as their authors publish them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from kdrun.config.dataset import PHOTO, Facts
from kdrun.core.errors import DataError
from kdrun.core.registry import register
from kdrun.data.found import has_official_counts
from kdrun.data.listing import Files, Listing
from kdrun.data.sets.common import (
    KEY,
    DrawnConfig,
    PartitionConfig,
    Published,
    PublishedConfig,
    RootConfig,
    by_class,
    drawn,
    in_range,
    lines_of,
    number_of,
    read_mat,
)


@register("dataset", "food101")
class Food101(Published):
    """Food-101 (Bossard et al. 2014): 75,750 training and 25,250 test images, 101 classes."""

    class Config(PublishedConfig):
        pass

    facts = Facts(
        channels=3, classes=101, train=75_750, test=25_250, download=5.0e9,
        prompts=("a photo of {}, a type of food.",),
    )  # fmt: skip
    folder, images, needed = "food-101", "images", ("meta/train.json", "meta/test.json")
    content = "the content of food-101.tar.gz"
    official = "Food101"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        listed = {split: by_class(folder / "meta" / f"{split}.json") for split in ("train", "test")}
        names = sorted(listed["train"])
        if names != sorted(listed["test"]):
            raise DataError(f"{KEY}: {folder / 'meta'}: train.json and test.json name different classes")
        train, test = (
            [(folder / "images" / f"{image}.jpg", k) for k, name in enumerate(names) for image in by_class[name]]
            for by_class in listed.values()
        )
        return Listing(train, test, names, folder, KEY)


@register("dataset", "caltech101")
class Caltech101(Published):
    """Caltech-101 (Fei-Fei et al. 2004): 8,677 images of 101 classes; the background is none of them."""

    class Config(DrawnConfig):
        pass

    facts = Facts(channels=3, classes=101, train=8_677, download=137e6, prompts=PHOTO)
    folder, images = "caltech101", "101_ObjectCategories"
    content = "101_ObjectCategories of caltech-101.zip as caltech101/101_ObjectCategories"
    official = "Caltech101"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        return drawn(folder, folder / cls.images, config, without=("BACKGROUND_Google",))


@register("dataset", "eurosat")
class EuroSAT(Published):
    """EuroSAT (Helber et al. 2019, arXiv 1709.00029): 27,000 satellite images of 64x64 pixels, 10 classes."""

    class Config(DrawnConfig):
        size: int = Field(64, gt=0)

    facts = Facts(
        size=64, channels=3, classes=10, train=27_000, download=94e6,
        prompts=("a centered satellite photo of {}.",),
    )  # fmt: skip
    folder, images = "eurosat", "2750"
    content = "the content of EuroSAT.zip as eurosat/2750"
    official = "EuroSAT"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        return drawn(folder, folder / cls.images, config)


@register("dataset", "oxford_pets")
class OxfordPets(Published):
    """Oxford-IIIT Pet (Parkhi et al. 2012): 3,680 training and 3,669 test images of 37 breeds."""

    class Config(PublishedConfig):
        pass

    facts = Facts(
        channels=3, classes=37, train=3_680, test=3_669, download=811e6,
        prompts=("a photo of a {}, a type of pet.",),
    )  # fmt: skip
    folder, images = "oxford-iiit-pet", "images"
    needed = ("annotations/trainval.txt", "annotations/test.txt")
    content = "the content of images.tar.gz and annotations.tar.gz as oxford-iiit-pet/images and .../annotations"
    official = "OxfordIIITPet"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        names: dict[int, str] = {}

        def part(split: str) -> Files:
            place = folder / "annotations" / f"{split}.txt"
            out = []
            for line in lines_of(place):
                image, label = [*line.split(), ""][:2]
                if not label.isdecimal() or int(label) < 1:
                    raise DataError(f"{KEY}: {place}: expected lines such as Abyssinian_100 1 1 1, got {line!r}")
                names.setdefault(int(label) - 1, image.rpartition("_")[0])
                out.append((folder / "images" / f"{image}.jpg", int(label) - 1))
            return out

        train, test = part("trainval"), part("test")
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{KEY}: {folder / 'annotations'}: its labels are not 1 to {len(names)}")
        return Listing(train, test, [names[k] for k in range(len(names))], folder, KEY)


@register("dataset", "stanford_cars")
class StanfordCars(Published):
    """Stanford Cars (Krause et al. 2013): 8,144 training and 8,041 test images of 196 models. No longer offered."""

    class Config(RootConfig):
        pass

    facts = Facts(channels=3, classes=196, train=8_144, test=8_041, download=1.96e9, prompts=PHOTO)
    folder, images = "stanford_cars", ""
    needed = (
        "devkit/cars_train_annos.mat",
        "devkit/cars_meta.mat",
        "cars_test_annos_withlabels.mat",
        "cars_train",
        "cars_test",
    )
    content = "stanford_cars/ with devkit, cars_train, cars_test and cars_test_annos_withlabels.mat"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        names = [str(name) for name in read_mat(folder / "devkit" / "cars_meta.mat", "class_names")]

        def part(place: Path, images: str) -> Files:
            rows = read_mat(place, "annotations")
            if rows.dtype.names is None or not {"fname", "class"} <= set(rows.dtype.names):
                raise DataError(f"{KEY}: {place}: annotations without fname and class")
            files = [(folder / images / str(row["fname"]), int(row["class"]) - 1) for row in rows]
            in_range(files, len(names), place)
            return files

        train = part(folder / "devkit" / "cars_train_annos.mat", "cars_train")
        test = part(folder / "cars_test_annos_withlabels.mat", "cars_test")
        return Listing(train, test, names, folder, KEY)


@register("dataset", "flowers102")
class Flowers102(Published):
    """Oxford 102 Flower (Nilsback and Zisserman 2008): 1,020 training, 1,020 validation and 6,149 test images."""

    class Config(PublishedConfig):
        pass

    facts = Facts(
        channels=3, classes=102, train=1_020, val=1_020, test=6_149, download=346e6,
        prompts=("a photo of a {}, a type of flower.",),
    )  # fmt: skip
    folder, images, needed = "flowers-102", "jpg", ("imagelabels.mat", "setid.mat")
    content = "jpg of 102flowers.tgz, imagelabels.mat and setid.mat in flowers-102"
    official = "Flowers102"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        from torchvision.datasets import Flowers102 as Official

        names: list[str] = Official.classes
        labels = read_mat(folder / "imagelabels.mat", "labels")

        def part(split: str) -> Files:
            place = folder / "setid.mat"
            ids = [int(k) for k in read_mat(place, split)]
            if ids and not 1 <= min(ids) <= max(ids) <= len(labels):
                raise DataError(
                    f"{KEY}: {place}: {split} reaches from {min(ids)} to {max(ids)}, allowed 1 to {len(labels)}"
                )
            files = [(folder / "jpg" / f"image_{k:05d}.jpg", int(labels[k - 1]) - 1) for k in ids]
            in_range(files, len(names), folder / "imagelabels.mat")
            return files

        return Listing(part("trnid"), part("tstid"), names, folder, KEY, part("valid"))


@register("dataset", "fgvc_aircraft")
class FGVCAircraft(Published):
    """FGVC-Aircraft (Maji et al. 2013, arXiv 1306.5151): 3,334 training, 3,333 validation and 3,333 test images."""

    class Config(PublishedConfig):
        pass

    facts = Facts(
        channels=3, classes=100, train=3_334, val=3_333, test=3_333, download=2.75e9,
        prompts=("a photo of a {}, a type of aircraft.",),
    )  # fmt: skip
    folder, images = "fgvc-aircraft-2013b", "data/images"
    needed = ("data/variants.txt", *(f"data/images_variant_{split}.txt" for split in ("train", "val", "test")))
    content = "the content of fgvc-aircraft-2013b.tar.gz"
    official = "FGVCAircraft"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        names = lines_of(folder / "data" / "variants.txt")
        number = {name: k for k, name in enumerate(names)}

        def part(split: str) -> Files:
            place = folder / "data" / f"images_variant_{split}.txt"
            rows = [line.split(" ", 1) for line in lines_of(place)]
            return [(folder / cls.images / f"{row[0]}.jpg", number_of(number, row[1:], place)) for row in rows]

        return Listing(part("train"), part("test"), names, folder, KEY, part("val"))


@register("dataset", "dtd")
class DTD(Published):
    """Describable Textures (Cimpoi et al. 2014, arXiv 1311.3618): 1,880 images each to train, validate and test."""

    class Config(PartitionConfig):
        pass

    facts = Facts(channels=3, classes=47, train=1_880, val=1_880, test=1_880, download=625e6, prompts=("{} texture.",))
    folder, images, needed = "dtd/dtd", "images", ("labels",)
    content = "the content of dtd-r1.0.1.tar.gz as dtd/dtd"
    official = "DTD"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        listed = {
            split: lines_of(folder / "labels" / f"{split}{config.partition}.txt") for split in ("train", "val", "test")
        }
        names = sorted({line.partition("/")[0] for lines in listed.values() for line in lines})
        number = {name: k for k, name in enumerate(names)}
        train, val, test = (
            [(folder / "images" / line, number[line.partition("/")[0]]) for line in lines] for lines in listed.values()
        )
        return Listing(train, test, names, folder, KEY, val)


@register("dataset", "sun397")
class SUN397(Published):
    """SUN397 (Xiao et al. 2010): scenes; a partition has 19,850 training and as many test images of 397 classes."""

    class Config(PartitionConfig):
        pass

    facts = Facts(channels=3, classes=397, train=19_850, test=19_850, download=39e9, prompts=PHOTO)
    folder, images, needed = "SUN397", "", ("ClassName.txt",)
    content = "the content of SUN397.tar.gz"
    official = "SUN397"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        names = [line.removeprefix("/") for line in lines_of(folder / "ClassName.txt")]
        number = {name: k for k, name in enumerate(names)}
        parts = []
        for split in ("Training", "Testing"):
            name = f"{split}_{config.partition:02d}.txt"
            place = next((p / name for p in (folder, folder.parent) if (p / name).is_file()), None)
            if place is None:
                raise DataError(
                    f"{KEY}: {folder / name} is not there; put the content of SUN's Partitions.zip into {folder}"
                )
            lines = [line.removeprefix("/") for line in lines_of(place)]
            parts.append([(folder / line, number_of(number, [line.rpartition("/")[0]], place)) for line in lines])
        return Listing(parts[0], parts[1], [name.split("/", 1)[-1] for name in names], folder, KEY)


@register("dataset", "ucf101")
class UCF101(Published):
    """UCF101 (Soomro et al. 2012, arXiv 1212.0402): actions, the middle frame of each of 13,320 videos, 101 classes.

    The frames are files: <class>/<video>.jpg, or a folder <class>/<video>/ of which the middle one counts.
    """

    class Config(RootConfig):
        partition: int = Field(1, ge=1, le=3)
        """Which of the authors' splits."""

    # of the first partition; the frames are the user's to cut
    facts = Facts(channels=3, classes=101, train=9_537, test=3_783, prompts=("a photo of a person doing {}.",))
    counts: ClassVar[dict[int, tuple[int, int]]] = {1: (9_537, 3_783), 2: (9_586, 3_734), 3: (9_624, 3_696)}
    """Training and test videos of each partition."""
    folder, images = "ucf101", "UCF-101-midframes"
    needed = ("ucfTrainTestlist/classInd.txt",)
    content = "CoOp's UCF-101-midframes, and ucfTrainTestlist of UCF101TrainTestSplits-RecognitionTask.zip, in ucf101"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        lists, frames = folder / "ucfTrainTestlist", folder / cls.images
        names = [line.split()[-1] for line in lines_of(lists / "classInd.txt")]
        number = {name: k for k, name in enumerate(names)}

        def part(split: str) -> Files:
            place = lists / f"{split}list{config.partition:02d}.txt"
            out = []
            for line in lines_of(place):
                name, _, video = line.split()[0].partition("/")
                label = number_of(number, [name], place)
                out.append((_middle_frame(frames, name, video.removesuffix(".avi")), label))
            return out

        return Listing(part("train"), part("test"), names, folder, KEY)

    @classmethod
    def fits(cls, listing: Listing, config: Any) -> bool:
        train, test = cls.counts[config.partition]
        return has_official_counts(replace(cls.facts, train=train, test=test), listing)


def _middle_frame(frames: Path, name: str, video: str) -> Path:
    """The image of a video, in the folder ApplyEyeMakeup or Apply_Eye_Makeup."""
    folders = (frames / name, frames / "_".join(re.findall("[A-Z][^A-Z]*", name)))
    for place in folders:
        if (place / video).is_dir():
            found = sorted((place / video).glob("*.jpg"))
            if found:
                return found[len(found) // 2]
    return next((place / f"{video}.jpg" for place in folders if place.is_dir()), folders[0] / f"{video}.jpg")
