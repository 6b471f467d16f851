"""Published datasets of image files, on small files in their real layouts, and CoOp's split files."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from kdrun.config.compose import Composer
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.data.arrays import Arrays
from kdrun.data.load import load_dataset
from kdrun.data.sets.common import Published
from tests.unit.test_published import write_food101, write_image

SIZE = 4


def load(name: str, root: Path, **keys) -> Arrays:
    keys = {"name": name, "root": str(root), "size": SIZE, **keys}
    return load_dataset(build(lookup("dataset", name, "").Config, keys, "dataset"))


def gray(path: Path, value: int) -> None:
    """An image that is known by its gray."""
    write_image(path, (6, 5), color=value)


def lines(path: Path, *content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(content) + "\n")


def grays(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


# Each writes a dataset of two classes below root: its training images, `count` of each class, have the grays 10 (class 0)
# and 20 (class 1), its official validation images 110 and 120, and its test images 210 and 220.


def write_imagenet(root: Path) -> None:
    for k, wnid in enumerate(("n01440764", "n01443537")):
        gray(root / "train" / wnid / f"{wnid}_1.JPEG", 10 * k + 10)
        gray(root / "val" / wnid / f"ILSVRC2012_val_0000000{k}.JPEG", 10 * k + 210)


def write_tiny_imagenet(root: Path) -> None:
    base, wnids = root / "tiny-imagenet-200", ("n02124075", "n01443537")
    lines(base / "wnids.txt", *wnids)
    lines(base / "words.txt", "n02124075\tEgyptian cat", "n01443537\tgoldfish, Carassius auratus")
    for k, wnid in enumerate(sorted(wnids)):
        gray(base / "train" / wnid / "images" / f"{wnid}_0.JPEG", 10 * k + 10)
        lines(base / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58")
        gray(base / "val" / "images" / f"val_{k}.JPEG", 10 * k + 210)
        gray(base / "test" / "images" / f"test_{k}.JPEG", 0)
    lines(
        base / "val" / "val_annotations.txt",
        "val_0.JPEG\tn01443537\t0\t32\t44\t62",
        "val_1.JPEG\tn02124075\t52\t55\t57\t59",
    )


def write_oxford_pets(root: Path, count: int = 1) -> None:
    base, names = root / "oxford-iiit-pet", ("Abyssinian", "american_bulldog")
    train = [(k, f"{name}_{i + 1}") for i in range(count) for k, name in enumerate(names)]
    for k, name in train:
        gray(base / "images" / f"{name}.jpg", 10 * k + 10)
    for k, name in enumerate(names):
        gray(base / "images" / f"{name}_201.jpg", 10 * k + 210)
    lines(base / "annotations" / "trainval.txt", *(f"{name} {k + 1} {k + 1} 1" for k, name in train))
    lines(base / "annotations" / "test.txt", "Abyssinian_201 1 1 1", "american_bulldog_201 2 2 1")


def write_stanford_cars(root: Path, count: int = 1) -> None:
    base = root / "stanford_cars"
    kind = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for folder, value, path, n in (
        ("cars_train", 10, "devkit/cars_train_annos.mat", 2 * count),
        ("cars_test", 210, "cars_test_annos_withlabels.mat", 2),
    ):
        rows = np.array([(1, 1, 5, 4, k % 2 + 1, f"{k + 1:05d}.jpg") for k in range(n)], kind)
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(base / path, {"annotations": rows})
        for k in range(n):
            gray(base / folder / f"{k + 1:05d}.jpg", value + 10 * (k % 2))
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], object)
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})


def write_flowers102(root: Path, count: int = 1) -> None:
    base, n = root / "flowers-102", 2 * count
    values = (*((10, 20) * count), 110, 120, 210, 220)
    for number, value in enumerate(values, start=1):
        gray(base / "jpg" / f"image_{number:05d}.jpg", value)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2] * (count + 2)], np.uint8)})
    ids = {"trnid": [[*range(1, n + 1)]], "valid": [[n + 1, n + 2]], "tstid": [[n + 3, n + 4]]}
    scipy.io.savemat(base / "setid.mat", ids)


def write_fgvc_aircraft(root: Path, count: int = 1) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    lines(data / "variants.txt", "707-320", "Boeing 717")
    for split, value, n in (("train", 10, count), ("val", 110, 1), ("test", 210, 1)):
        listed = []
        for i in range(n):
            for k, name in enumerate(("707-320", "Boeing 717")):
                number = 1000 * i + value + 10 * k
                gray(data / "images" / f"{number:07d}.jpg", value + 10 * k)
                listed.append(f"{number:07d} {name}")
        lines(data / f"images_variant_{split}.txt", *listed)


def write_dtd(root: Path, count: int = 1) -> None:
    base = root / "dtd" / "dtd"
    for split, value, n in (("train", 10, count), ("val", 110, 1), ("test", 210, 1)):
        listed = [f"{name}/{name}_{1000 * i + value:04d}.jpg" for i in range(n) for name in ("banded", "zigzagged")]
        for partition in (1, 2):
            lines(base / "labels" / f"{split}{partition}.txt", *listed)
        for k, image in enumerate(listed):
            gray(base / "images" / image, value + 10 * (k % 2))


def write_sun397(root: Path, count: int = 1) -> None:
    names = ("/a/abbey", "/b/bank/indoor")
    lines(root / "SUN397" / "ClassName.txt", *names)
    for split, value, n in (("Training", 10, count), ("Testing", 210, 1)):
        listed = [(k, f"{name}/sun_{1000 * i + value}.jpg") for i in range(n) for k, name in enumerate(names)]
        lines(root / "SUN397" / f"{split}_01.txt", *(image for _, image in listed))
        for k, image in listed:
            gray(root / f"SUN397{image}", value + 10 * k)


def write_ucf101(root: Path, count: int = 1) -> None:
    base = root / "ucf101"
    lines(base / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup", "2 YoYo")
    names = ("ApplyEyeMakeup", "YoYo")
    train = [(k, f"g08_c{i + 1:02d}") for i in range(count) for k in range(2)]
    test = [f"{name}/v_{name}_g01_c01.avi" for name in names]
    listed = [f"{names[k]}/v_{names[k]}_{clip}.avi {k + 1}" for k, clip in train]
    lines(base / "ucfTrainTestlist" / "trainlist01.txt", *listed)
    lines(base / "ucfTrainTestlist" / "testlist01.txt", *test)
    frames = base / "UCF-101-midframes"
    for k, folder in enumerate(("Apply_Eye_Makeup", "YoYo")):  # CoOp's names and the authors'
        for clip in (clip for which, clip in train if which == k):
            gray(frames / folder / f"v_{names[k]}_{clip}.jpg", 10 * k + 10)
        for frame, value in enumerate((0, 10 * k + 210, 255)):
            gray(frames / folder / f"v_{names[k]}_g01_c01" / f"{frame:04d}.jpg", value)


OFFICIAL = {"flowers102", "fgvc_aircraft", "dtd"}
NAMES: dict[str, tuple[Callable[[Path], None], tuple[str, str]]] = {
    "imagenet": (write_imagenet, ("n01440764", "n01443537")),
    "imagenet100": (write_imagenet, ("n01440764", "n01443537")),
    "tiny_imagenet": (write_tiny_imagenet, ("n01443537", "n02124075")),
    "oxford_pets": (write_oxford_pets, ("Abyssinian", "american_bulldog")),
    "stanford_cars": (write_stanford_cars, ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")),
    "flowers102": (write_flowers102, ("pink primrose", "hard-leaved pocket orchid")),
    "fgvc_aircraft": (write_fgvc_aircraft, ("707-320", "Boeing 717")),
    "dtd": (write_dtd, ("banded", "zigzagged")),
    "sun397": (write_sun397, ("abbey", "bank/indoor")),
    "ucf101": (write_ucf101, ("ApplyEyeMakeup", "YoYo")),
}


@pytest.mark.parametrize("name", NAMES)
def test_images_labels_and_names(tmp_path, name):
    write, names = NAMES[name]
    write(tmp_path)
    got = load(name, tmp_path, val="official" if name in OFFICIAL else "drawn")
    assert grays(got.train_images) == [10, 20, *([110, 120] if name in OFFICIAL else [])]
    assert got.train_labels.tolist() == [0, 1] * (len(got.train_labels) // 2)
    assert grays(got.test_images) == [210, 220]
    assert got.test_labels.tolist() == [0, 1]
    assert got.class_names[:2] == names
    assert got.val is None if name not in OFFICIAL else got.val.tolist() == [2, 3]


@pytest.mark.parametrize("name", ["oxford_pets", "caltech101"])
def test_official_validation_images_where_there_are_none(tmp_path, name):
    write_oxford_pets(tmp_path)
    write_drawn(tmp_path, "caltech101/101_ObjectCategories", "BACKGROUND_Google")
    with pytest.raises(ConfigError, match=rf"dataset\.val: {name} has no official validation images; set it to drawn"):
        load(name, tmp_path, val="official")


def write_drawn(root: Path, place: str, *more: str) -> None:
    for k, name in enumerate(("accordion", "yin_yang", *more)):
        for i in range(10):
            gray(root / place / name / f"image_{i:04d}.jpg", 100 * k + i)


@pytest.mark.parametrize(
    ("name", "place"), [("caltech101", "caltech101/101_ObjectCategories"), ("eurosat", "eurosat/2750")]
)
def test_test_images_are_drawn_where_there_is_no_official_split(tmp_path, name, place):
    write_drawn(tmp_path, place, *(["BACKGROUND_Google"] if name == "caltech101" else []))
    got, again = load(name, tmp_path), load(name, tmp_path, pack={"crop": "square"})
    assert got.class_names == ("accordion", "yin_yang")
    assert np.bincount(got.test_labels).tolist() == [3, 3]
    assert np.bincount(got.train_labels).tolist() == [7, 7]
    assert len({*grays(got.train_images), *grays(got.test_images)}) == 20
    assert grays(got.test_images) == grays(again.test_images)
    assert np.bincount(load(name, tmp_path, test_fraction=0.5).test_labels).tolist() == [5, 5]


def test_the_split_of_a_run_has_the_official_validation_images(tmp_path):
    from kdrun.data.splits import make_split

    write_flowers102(tmp_path)
    with Composer() as composer:
        config = composer.typed(
            ["dataset=flowers102", f"dataset.root={tmp_path}", "dataset.size=4", "dataset.pack.size=null"]
        )
    arrays = load_dataset(config.dataset)
    split = make_split(config, arrays.train_labels, 2, 2, arrays.val)
    assert split.labeled.tolist() == [0, 1]
    assert split.val.tolist() == [2, 3]


def coop(root: Path, **changes: Any) -> str:
    split = {
        "train": [["Abyssinian_1.jpg", 0, "abyssinian"]],
        "val": [["american_bulldog_201.jpg", 1, "american_bulldog"]],
        "test": [["american_bulldog_1.jpg", 1, "american_bulldog"], ["Abyssinian_201.jpg", 0, "abyssinian"]],
    }
    path = root / "split_zhou_OxfordPets.json"
    path.write_text(json.dumps({**split, **changes}))
    return str(path)


def test_a_split_of_coop_replaces_the_authors(tmp_path):
    write_oxford_pets(tmp_path)
    shutil.rmtree(tmp_path / "oxford-iiit-pet" / "annotations")  # not needed then
    got = load("oxford_pets", tmp_path, coop_split=coop(tmp_path), val="official", download=False)
    assert grays(got.train_images) == [10, 220]
    assert grays(got.test_images) == [20, 210]
    assert got.test_labels.tolist() == [1, 0]
    assert got.val.tolist() == [1]
    assert got.class_names == ("abyssinian", "american_bulldog")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test": [["a.jpg", 0, "abyssinian"], ["b.jpg", 0, "abyssinian"]]},
            r"missing image .*images/a\.jpg\n.*images/b\.jpg",
        ),
        ({"test": [[f"{i}.jpg", 0, "abyssinian"] for i in range(25)]}, r"images/19\.jpg\n.*and 5 more of them"),
        ({"test": [["Abyssinian_1.jpg", 0, "cat"]]}, "class 0 is called abyssinian and, at .*, cat"),
        ({"test": [["Abyssinian_1.jpg", 5, "cat"]]}, "its labels are not 0 to 2"),
        ({"test": [["Abyssinian_1.jpg", 0]]}, "not a split file of CoOp"),
        ({"test": None}, "not a split file of CoOp"),
    ],
)
def test_a_split_of_coop_that_does_not_fit(tmp_path, changes, message):
    write_oxford_pets(tmp_path)
    with pytest.raises(DataError, match=rf"dataset\.coop_split: .*split_zhou_OxfordPets\.json: {message}|{message}"):
        load("oxford_pets", tmp_path, coop_split=coop(tmp_path, **changes))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("tiny_imagenet", lambda r: lines(r / "tiny-imagenet-200/val/val_annotations.txt", "val_0.JPEG\tn999"), "val_annotations.txt: unknown class 'n999'"),
        ("tiny_imagenet", lambda r: lines(r / "tiny-imagenet-200/val/val_annotations.txt", "val_9.JPEG\tn01443537"), r"missing image .*val/images/val_9\.JPEG"),
        ("tiny_imagenet", lambda r: (r / "tiny-imagenet-200/wnids.txt").write_text(""), "wnids.txt: empty"),
        ("oxford_pets", lambda r: lines(r / "oxford-iiit-pet/annotations/test.txt", "Abyssinian_1 one"), "test.txt: expected lines such as"),
        ("oxford_pets", lambda r: (r / "oxford-iiit-pet/annotations/test.txt").write_bytes(b"\xff"), "test.txt: not a readable list"),
        ("stanford_cars", lambda r: (r / "stanford_cars/devkit/cars_meta.mat").write_bytes(b"x"), "cars_meta.mat: not a readable file with class_names"),
        ("stanford_cars", lambda r: scipy.io.savemat(r / "stanford_cars/devkit/cars_meta.mat", {"class_names": np.array(["a"], object)}), "cars_train_annos.mat: class 2, allowed 1 to 1"),
        ("flowers102", lambda r: scipy.io.savemat(r / "flowers-102/setid.mat", {"trnid": [[1, 9]], "valid": [[1]], "tstid": [[2]]}), "trnid reaches from 1 to 9, allowed 1 to 6"),
        ("fgvc_aircraft", lambda r: lines(r / "fgvc-aircraft-2013b/data/images_variant_val.txt", "0000110 747"), "unknown class '747'"),
        ("sun397", lambda r: (r / "SUN397/Testing_01.txt").unlink(), "Testing_01.txt is not there; put the content of SUN's Partitions.zip"),
        ("dtd", lambda r: (r / "dtd/dtd/labels/val1.txt").unlink(), "val1.txt: not a readable list"),
        ("ucf101", lambda r: lines(r / "ucf101/ucfTrainTestlist/testlist01.txt", "YoYo/v_YoYo_g09_c01.avi"), r"missing image .*YoYo/v_YoYo_g09_c01\.jpg"),
        ("imagenet", lambda r: shutil.rmtree(r / "val"), "val: no such folder; expected .*/val/<class>/<image>"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, name, spoil, message):
    NAMES[name][0](tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=rf"dataset\.root: .*{message}"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["tiny_imagenet", "caltech101", "eurosat", "oxford_pets", "flowers102", "fgvc_aircraft", "dtd", "sun397"]
)
def test_absent_files_are_downloaded_where_there_is_a_network(tmp_path, monkeypatch, name):
    part = lookup("dataset", name, "")
    asked = []

    def offline(*arguments, **keys):
        asked.append((arguments, keys))
        raise OSError("no network")

    if part.official is None:
        monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", offline)
    else:
        monkeypatch.setattr(f"torchvision.datasets.{part.official}", offline)
    with pytest.raises(DataError, match=r"is not there and cannot be downloaded \(no network\); put .* below "):
        load(name, tmp_path / "new")
    assert len(asked) == 1
    assert part.official is None or asked == [((str(tmp_path / "new"),), {"download": True})]
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"is not there; put .* below .*, or allow dataset\.download$"):
        load(name, tmp_path / "new", download=False)


@pytest.mark.parametrize(
    "name", ["caltech101", "eurosat", "oxford_pets", "flowers102", "fgvc_aircraft", "dtd", "sun397"]
)
def test_a_failed_download_leaves_no_folder_that_would_pass_for_the_users(tmp_path, monkeypatch, name):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for _ in range(2):
        with pytest.raises(DataError, match=r"is not there and cannot be downloaded \(.*no network.*\); put .* below "):
            load(name, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["stanford_cars", "ucf101"])
def test_absent_files_that_nobody_offers(tmp_path, name):
    with pytest.raises(DataError, match=rf"is not there; put .*{name}.* below {tmp_path}$"):
        load(name, tmp_path)


def test_every_reader_is_tested_here_and_names_a_class_of_torchvision():
    from torchvision import datasets

    readers = {part.__name__: part for part in Published.__subclasses__()}
    assert all(part.official is None or hasattr(datasets, part.official) for part in readers.values())
    assert (
        len(readers) == len(NAMES) - 2 + 3
    )  # ImageNet has no archive; Food-101 and the two drawn ones stand elsewhere


def test_the_hundred_classes(tmp_path):
    with Composer() as composer:
        classes = composer.typed(["dataset=imagenet100"]).dataset.classes
    assert len(classes) == len(set(classes)) == 100
    write_imagenet(tmp_path)
    got = load("imagenet", tmp_path)
    with pytest.raises(ConfigError, match="there must be two or more"):
        load("imagenet", tmp_path, classes=list(got.class_names[:1]))


def test_food101_takes_a_split_of_coop_too(tmp_path):
    write_food101(tmp_path)
    split = {"train": [["sushi/7.jpg", 0, "sushi"]], "val": [], "test": [["apple_pie/3.jpg", 1, "apple_pie"]]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    got = load("food101", tmp_path, coop_split=str(tmp_path / "split.json"))
    assert (got.train_labels.tolist(), got.test_labels.tolist()) == ([0], [1])
