"""Published datasets of image files, in the layouts that torchvision downloads and reads.

A reader says which files there are, with their labels; `kdrun.data.listing` decodes or packs them. Where the authors
give no test images, a share of each class is drawn, always the same. `dataset.coop_split` replaces the authors' split.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from kdrun.config import FilesConfig
from kdrun.data.files import ensure_files, list_classes, root_folder
from kdrun.data.listing import Files, Listing, read_coop_split
from kdrun.errors import DataError
from kdrun.registry import register
from kdrun.schema import OutsideKey
from kdrun.seeding import subseed

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


@register("dataset", "food101")
class Food101(Published):
    """Food-101 (Bossard et al. 2014): 75,750 training and 25,250 test images, 101 classes."""

    class Config(PublishedConfig):
        pass

    folder, images, needed = "food-101", "images", ("meta/train.json", "meta/test.json")
    content = "the content of food-101.tar.gz"
    official = "Food101"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        listed = {split: _by_class(folder / "meta" / f"{split}.json") for split in ("train", "test")}
        names = sorted(listed["train"])
        if names != sorted(listed["test"]):
            raise DataError(f"{KEY}: {folder / 'meta'}: train.json and test.json name different classes")
        train, test = (
            [(folder / "images" / f"{image}.jpg", k) for k, name in enumerate(names) for image in by_class[name]]
            for by_class in listed.values()
        )
        return Listing(train, test, names, folder, KEY)


@register("dataset", "tiny_imagenet")
class TinyImageNet(Published):
    """Tiny-ImageNet (Le and Yang 2015): 100,000 training images of 64x64 pixels; its 10,000 validation images test."""

    class Config(PublishedConfig):
        size: int = Field(64, gt=0)

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
        names, paths, labels = list_classes(folder / "train", _words(folder / "wnids.txt"), key=KEY)
        number = {name: k for k, name in enumerate(names)}
        place = folder / "val" / "val_annotations.txt"
        rows = [line.split("\t") for line in _lines(place)]
        test = [(folder / "val" / "images" / row[0], _number(number, row[1:2], place)) for row in rows]
        return Listing(list(zip(paths, labels, strict=True)), test, names, folder, KEY)


@register("dataset", "caltech101")
class Caltech101(Published):
    """Caltech-101 (Fei-Fei et al. 2004): 8,677 images of 101 classes; the background is none of them."""

    class Config(DrawnConfig):
        pass

    folder, images = "caltech101", "101_ObjectCategories"
    content = "101_ObjectCategories of caltech-101.zip as caltech101/101_ObjectCategories"
    official = "Caltech101"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        return _drawn(folder, folder / cls.images, config, without=("BACKGROUND_Google",))


@register("dataset", "eurosat")
class EuroSAT(Published):
    """EuroSAT (Helber et al. 2019, arXiv 1709.00029): 27,000 satellite images of 64x64 pixels, 10 classes."""

    class Config(DrawnConfig):
        size: int = Field(64, gt=0)

    folder, images = "eurosat", "2750"
    content = "the content of EuroSAT.zip as eurosat/2750"
    official = "EuroSAT"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        return _drawn(folder, folder / cls.images, config)


@register("dataset", "oxford_pets")
class OxfordPets(Published):
    """Oxford-IIIT Pet (Parkhi et al. 2012): 3,680 training and 3,669 test images of 37 breeds."""

    class Config(PublishedConfig):
        pass

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
            for line in _lines(place):
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
        names = [str(name) for name in _mat(folder / "devkit" / "cars_meta.mat", "class_names")]

        def part(place: Path, images: str) -> Files:
            rows = _mat(place, "annotations")
            if rows.dtype.names is None or not {"fname", "class"} <= set(rows.dtype.names):
                raise DataError(f"{KEY}: {place}: annotations without fname and class")
            files = [(folder / images / str(row["fname"]), int(row["class"]) - 1) for row in rows]
            _in_range(files, len(names), place)
            return files

        train = part(folder / "devkit" / "cars_train_annos.mat", "cars_train")
        test = part(folder / "cars_test_annos_withlabels.mat", "cars_test")
        return Listing(train, test, names, folder, KEY)


@register("dataset", "flowers102")
class Flowers102(Published):
    """Oxford 102 Flower (Nilsback and Zisserman 2008): 1,020 training, 1,020 validation and 6,149 test images."""

    class Config(PublishedConfig):
        pass

    folder, images, needed = "flowers-102", "jpg", ("imagelabels.mat", "setid.mat")
    content = "jpg of 102flowers.tgz, imagelabels.mat and setid.mat in flowers-102"
    official = "Flowers102"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        from torchvision.datasets import Flowers102 as Official

        names: list[str] = Official.classes
        labels = _mat(folder / "imagelabels.mat", "labels")

        def part(split: str) -> Files:
            place = folder / "setid.mat"
            ids = [int(k) for k in _mat(place, split)]
            if ids and not 1 <= min(ids) <= max(ids) <= len(labels):
                raise DataError(
                    f"{KEY}: {place}: {split} reaches from {min(ids)} to {max(ids)}, allowed 1 to {len(labels)}"
                )
            files = [(folder / "jpg" / f"image_{k:05d}.jpg", int(labels[k - 1]) - 1) for k in ids]
            _in_range(files, len(names), folder / "imagelabels.mat")
            return files

        return Listing(part("trnid"), part("tstid"), names, folder, KEY, part("valid"))


@register("dataset", "fgvc_aircraft")
class FGVCAircraft(Published):
    """FGVC-Aircraft (Maji et al. 2013, arXiv 1306.5151): 3,334 training, 3,333 validation and 3,333 test images."""

    class Config(PublishedConfig):
        pass

    folder, images = "fgvc-aircraft-2013b", "data/images"
    needed = ("data/variants.txt", *(f"data/images_variant_{split}.txt" for split in ("train", "val", "test")))
    content = "the content of fgvc-aircraft-2013b.tar.gz"
    official = "FGVCAircraft"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        names = _lines(folder / "data" / "variants.txt")
        number = {name: k for k, name in enumerate(names)}

        def part(split: str) -> Files:
            place = folder / "data" / f"images_variant_{split}.txt"
            rows = [line.split(" ", 1) for line in _lines(place)]
            return [(folder / cls.images / f"{row[0]}.jpg", _number(number, row[1:], place)) for row in rows]

        return Listing(part("train"), part("test"), names, folder, KEY, part("val"))


@register("dataset", "dtd")
class DTD(Published):
    """Describable Textures (Cimpoi et al. 2014, arXiv 1311.3618): 1,880 images each to train, validate and test."""

    class Config(PartitionConfig):
        pass

    folder, images, needed = "dtd/dtd", "images", ("labels",)
    content = "the content of dtd-r1.0.1.tar.gz as dtd/dtd"
    official = "DTD"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        listed = {
            split: _lines(folder / "labels" / f"{split}{config.partition}.txt") for split in ("train", "val", "test")
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

    folder, images, needed = "SUN397", "", ("ClassName.txt",)
    content = "the content of SUN397.tar.gz"
    official = "SUN397"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        names = [line.removeprefix("/") for line in _lines(folder / "ClassName.txt")]
        number = {name: k for k, name in enumerate(names)}
        parts = []
        for split in ("Training", "Testing"):
            name = f"{split}_{config.partition:02d}.txt"
            place = next((p / name for p in (folder, folder.parent) if (p / name).is_file()), None)
            if place is None:
                raise DataError(
                    f"{KEY}: {folder / name} is not there; put the content of SUN's Partitions.zip into {folder}"
                )
            lines = [line.removeprefix("/") for line in _lines(place)]
            parts.append([(folder / line, _number(number, [line.rpartition("/")[0]], place)) for line in lines])
        return Listing(parts[0], parts[1], [name.split("/", 1)[-1] for name in names], folder, KEY)


@register("dataset", "ucf101")
class UCF101(Published):
    """UCF101 (Soomro et al. 2012, arXiv 1212.0402): actions, the middle frame of each of 13,320 videos, 101 classes.

    The frames are files: <class>/<video>.jpg, or a folder <class>/<video>/ of which the middle one counts.
    """

    class Config(RootConfig):
        partition: int = Field(1, ge=1, le=3)
        """Which of the authors' splits."""

    folder, images = "ucf101", "UCF-101-midframes"
    needed = ("ucfTrainTestlist/classInd.txt",)
    content = "CoOp's UCF-101-midframes, and ucfTrainTestlist of UCF101TrainTestSplits-RecognitionTask.zip, in ucf101"

    @classmethod
    def read(cls, folder: Path, config: Any) -> Listing:
        lists, frames = folder / "ucfTrainTestlist", folder / cls.images
        names = [line.split()[-1] for line in _lines(lists / "classInd.txt")]
        number = {name: k for k, name in enumerate(names)}

        def part(split: str) -> Files:
            place = lists / f"{split}list{config.partition:02d}.txt"
            out = []
            for line in _lines(place):
                name, _, video = line.split()[0].partition("/")
                label = _number(number, [name], place)
                out.append((_middle_frame(frames, name, video.removesuffix(".avi")), label))
            return out

        return Listing(part("train"), part("test"), names, folder, KEY)


def _middle_frame(frames: Path, name: str, video: str) -> Path:
    """The image of a video, in the folder ApplyEyeMakeup or Apply_Eye_Makeup."""
    folders = (frames / name, frames / "_".join(re.findall("[A-Z][^A-Z]*", name)))
    for place in folders:
        if (place / video).is_dir():
            found = sorted((place / video).glob("*.jpg"))
            if found:
                return found[len(found) // 2]
    return next((place / f"{video}.jpg" for place in folders if place.is_dir()), folders[0] / f"{video}.jpg")


def _drawn(folder: Path, images: Path, config: DrawnConfig, without: Sequence[str] = ()) -> Listing:
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


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError for an unreadable or empty one."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{KEY}: {path}: not a readable list ({error})") from None
    if not lines:
        raise DataError(f"{KEY}: {path}: empty")
    return lines


def _words(path: Path) -> list[str]:
    return [line.split()[0] for line in _lines(path)]


def _number(number: dict[str, int], name: Iterable[str], place: Path) -> int:
    """The number of a class that a list names."""
    found = next(iter(name), "")
    if found not in number:
        raise DataError(f"{KEY}: {place}: unknown class {found!r}")
    return number[found]


def _in_range(files: Files, num_classes: int, place: Path) -> None:
    wrong = [label + 1 for _, label in files if not 0 <= label < num_classes]
    if wrong:
        raise DataError(f"{KEY}: {place}: class {wrong[0]}, allowed 1 to {num_classes}")


def _by_class(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{KEY}: {path}: not a readable list of images ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(v, list) and v for v in content.values()):
        raise DataError(f"{KEY}: {path}: expected a mapping of classes to lists of images, none empty")
    return content


def _mat(path: Path, name: str) -> npt.NDArray[Any]:
    """An array (N,) of a MATLAB file."""
    import scipy.io

    try:
        array: npt.NDArray[Any] = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)[name])
    except Exception as error:  # a damaged .mat file may raise anything
        raise DataError(f"{KEY}: {path}: not a readable file with {name} ({type(error).__name__}: {error})") from None
    return array
