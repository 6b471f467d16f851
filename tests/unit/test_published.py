"""Published datasets on small files in their real formats, and what is said when they are absent or damaged."""

import http.client
import io
import json
import os
import pickle
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from kdrun.core.errors import DataError
from kdrun.core.hashing import file_hash
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.data.images import decode
from kdrun.data.load import load_dataset

RNG = np.random.default_rng(0)


def load(name, **keys):
    return load_dataset(build(lookup("dataset", name, "").Config, {"name": name, **keys}, "dataset"))


def write_cifar10(root: Path) -> np.ndarray:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, (30, 3072), dtype=np.uint8)
    labels = [i % 10 for i in range(30)]
    names = [*(f"data_batch_{b}" for b in range(1, 6)), "test_batch"]
    for b, name in enumerate(names):
        part = slice(5 * b, 5 * b + 5)
        content = {"data": images[part], "labels": labels[part], "batch_label": name, "filenames": ["x"] * 5}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {c}" for c in range(10)]}, protocol=2))
    return images


def test_cifar10(tmp_path):
    images = write_cifar10(tmp_path)
    got = load("cifar10", root=str(tmp_path), verify_md5=False)
    assert got.train_images.shape == (25, 32, 32, 3)
    assert got.test_images.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(got.train_images[7], images[7].reshape(3, 32, 32).transpose(1, 2, 0))
    np.testing.assert_array_equal(got.train_labels, np.arange(25) % 10)
    assert got.class_names[3] == "class 3"


def test_cifar100_has_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, n in (("train", 200), ("test", 100)):
        content = {
            "data": np.zeros((n, 3072), np.uint8),
            "fine_labels": [i % 100 for i in range(n)],
            "coarse_labels": [0] * n,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}, protocol=2))
    got = load("cifar100", root=str(tmp_path), verify_md5=False)
    assert got.num_classes == 100
    np.testing.assert_array_equal(got.train_labels[:101], [*range(100), 0])
    assert got.mean == (0.5071, 0.4867, 0.4408)


def test_a_repacked_copy_is_refused_unless_asked_for(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(
        DataError, match=r"data_batch_1 is damaged or not the published file .*dataset\.verify_md5=false"
    ):
        load("cifar10", root=str(tmp_path), download=False)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize("content", [Attack(), {"data": Attack()}, pickle.dumps([1])[:-2], b"", [1, 2]])
def test_a_batch_that_is_damaged_or_wants_to_run_code_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    bad = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(bad)
    with pytest.raises(DataError, match=r"data_batch_3: not a"):
        load("cifar10", root=str(tmp_path), verify_md5=False)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("label", [10, -1, 2**70, 1.5, "cat", None, [1, 2]])
@pytest.mark.parametrize("name", ["data_batch_2", "test_batch"])
def test_labels_out_of_range(tmp_path, name, label):
    write_cifar10(tmp_path)
    content = {"data": np.zeros((5, 3072), np.uint8), "labels": [0, 1, 2, 3, label]}
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=rf"{name}: labels: {re.escape(repr(label))}, allowed 0 to 9"):
        load("cifar10", root=str(tmp_path), verify_md5=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2", {"data": np.zeros((5, 1024), np.uint8), "labels": [0] * 5}, r"data is uint8 \(5, 1024\), expected uint8 \(N, 3072\)"),
        ("data_batch_2", {"data": np.zeros((5, 3072)), "labels": [0] * 5}, r"data is float64 \(5, 3072\), expected uint8"),
        ("data_batch_2", {"labels": [0] * 5}, "data is NoneType, expected uint8"),
        ("data_batch_2", {"data": np.zeros((5, 3072), np.uint8), "labels": [0] * 4}, "5 images without as many labels"),
        ("data_batch_2", {"data": np.zeros((5, 3072), np.uint8), "fine_labels": [0] * 5}, "5 images without as many labels"),
        ("batches.meta", {"label_names": ["cat"]}, "no list label_names of two or more"),
        ("batches.meta", {"names": ["cat", "dog"]}, "no list label_names of two or more"),
    ],
)  # fmt: skip
def test_a_batch_of_other_content_is_refused(tmp_path, name, content, message):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=rf"dataset\.root: .*{name}: {message}"):
        load("cifar10", root=str(tmp_path), verify_md5=False)


@pytest.mark.parametrize("verify_md5", [False, True])
def test_a_folder_in_place_of_a_batch(tmp_path, verify_md5):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"dataset\.root: .*data_batch_1"):
        load("cifar10", root=str(tmp_path), verify_md5=verify_md5)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cifar10", "the content of cifar-10-python.tar.gz"),
        ("cifar100", "the content of cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat"),
        ("stl10", "the content of stl10_binary.tar.gz"),
        ("food101", "the content of food-101.tar.gz"),
    ],
)
@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (urllib.error.URLError("no network"), "no network"),
        (TimeoutError("timed out"), "timed out"),
        (http.client.BadStatusLine("<html>"), "<html>"),
    ],
)
def test_absent_files_without_a_network(tmp_path, monkeypatch, name, source, failure, why):
    def refuse(*_, **__):
        raise failure

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    root = tmp_path / "new" / "data"
    with pytest.raises(
        DataError, match=rf"is not there and cannot be downloaded \(.*{why}.*\); put {source} below {root}$"
    ):
        load(name, root=str(root))
    with pytest.raises(DataError, match=rf"is not there; put {source} below {root}, or allow dataset\.download$"):
        load(name, root=str(root), download=False)
    assert not list(tmp_path.iterdir())


class Page(io.BytesIO):
    """What a hotel's network answers to every request."""

    url = length = None


@pytest.mark.parametrize("name", ["cifar10", "svhn", "food101"])
def test_a_page_in_place_of_the_archive(tmp_path, monkeypatch, name):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: Page(b"<html>Please log in</html>"))
    with pytest.raises(
        DataError, match=r"is not there and cannot be downloaded \(File not found or corrupted\.\); put"
    ):
        load(name, root=str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "food101"])
def test_nothing_is_downloaded_over_a_copy_of_the_user(tmp_path, monkeypatch, name):
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", asked.append)
    if name == "cifar10":
        write_cifar10(tmp_path)
        lost, keys = tmp_path / "cifar-10-batches-py" / "test_batch", {"verify_md5": False}
    else:
        write_food101(tmp_path)
        lost, keys = tmp_path / "food-101" / "meta" / "test.json", {}
    lost.unlink()
    with pytest.raises(DataError, match=rf"{lost} is not there, and a download would write over .*delete that folder"):
        load(name, root=str(tmp_path), **keys)
    assert not asked


@pytest.mark.parametrize("name", ["cifar10", "svhn", "food101"])
def test_the_home_of_nobody(name):
    with pytest.raises(DataError, match=r"dataset\.root: ~nobody-at-all/data: no such home directory"):
        load(name, root="~nobody-at-all/data")


def write_svhn(root: Path) -> dict[str, np.ndarray]:
    out = {}
    for split, n in (("train", 20), ("test", 10), ("extra", 13)):
        images = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        scipy.io.savemat(
            root / f"{split}_32x32.mat", {"X": images, "y": (np.arange(n) % 10 + 1)[:, None].astype(np.uint8)}
        )
        out[split] = images
    return out


def test_svhn_calls_class_10_the_digit_0_and_is_never_mirrored(tmp_path):
    images = write_svhn(tmp_path)
    got = load("svhn", root=str(tmp_path), verify_md5=False)
    np.testing.assert_array_equal(got.train_images[3], images["train"][..., 3])
    np.testing.assert_array_equal(got.train_labels[:11], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    assert lookup("dataset", "svhn", "").Config(name="svhn").mirror is False
    (tmp_path / "test_32x32.mat").write_bytes((tmp_path / "test_32x32.mat").read_bytes()[:500])
    part = lookup("dataset", "svhn", "")
    with pytest.raises(DataError, match=r"test_32x32\.mat: not a readable SVHN file"):
        part.load(part.Config(name="svhn", root=str(tmp_path), verify_md5=False))


def test_svhn_s_extra_images_are_training_images_behind_the_others(tmp_path, monkeypatch):
    images = write_svhn(tmp_path)
    plain, got = (load("svhn", root=str(tmp_path), verify_md5=False, extra=extra) for extra in (False, True))
    assert (len(plain.train_images), len(got.train_images), len(got.test_images)) == (20, 33, 10)
    np.testing.assert_array_equal(got.train_images[:20], plain.train_images)
    np.testing.assert_array_equal(got.train_images[20:], images["extra"].transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(got.train_labels[20:], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3])
    assert got.train_images.flags.c_contiguous
    part = lookup("dataset", "svhn", "")
    configs = [part.Config(name="svhn", root=str(tmp_path), extra=extra) for extra in (False, True)]
    assert [path.name for path in part.sources(configs[1])] == ["train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"]
    (tmp_path / "extra_32x32.mat").unlink()
    part.load(configs[0].replace(verify_md5=False))
    with pytest.raises(DataError, match=r"extra_32x32\.mat is not there; put extra_32x32\.mat below"):
        part.load(configs[1].replace(verify_md5=False, download=False))
    write_svhn(tmp_path)
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda path, md5: md5[:4] != "a93c")
    with pytest.raises(DataError, match=r"extra_32x32\.mat is damaged or not the published file"):
        part.load(configs[1])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"X": np.zeros((20, 32, 32, 3), np.uint8)}, r"X is uint8 \(20, 32, 32, 3\), expected uint8 \(32, 32, 3, N\)"),
        ({"y": np.full((20, 1), 11)}, "holds more than the whole numbers 0 to 10"),
        ({"y": np.full((20, 1), 1.5)}, "holds more than the whole numbers 0 to 10"),
        ({"y": np.full((20, 1), np.nan)}, "holds more than the whole numbers 0 to 10"),
        ({"y": np.array(["a"] * 20)}, "holds more than the whole numbers 0 to 10"),
        ({"y": np.array([[i] for i in range(20)], dtype=object)}, "holds more than the whole numbers 0 to 10"),
        ({"y": np.ones((19, 1))}, r"train: 20 images but labels of shape \(19,\)"),
        ({"y": None}, r"not a readable SVHN file \(KeyError: 'y'\)"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_svhn_of_other_content_is_refused(tmp_path, part, message):
    write_svhn(tmp_path)
    content = {"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.ones((20, 1)), **part}
    scipy.io.savemat(
        tmp_path / "train_32x32.mat", {name: value for name, value in content.items() if value is not None}
    )
    with pytest.raises(DataError, match=rf"dataset\.root: {tmp_path}.*{message}"):
        load("svhn", root=str(tmp_path), verify_md5=False)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\0" * 600, b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\0" * 600]
)
def test_svhn_that_is_no_mat_file_is_refused(tmp_path, content):
    write_svhn(tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"test_32x32\.mat: not a readable SVHN file"):
        load("svhn", root=str(tmp_path), verify_md5=False)


def write_image(path: Path, size=(20, 14), mode="RGB", color=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
    pixels = (
        RNG.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
        if color is None
        else np.full((size[1], size[0], channels), color, np.uint8)
    )
    Image.fromarray(pixels.squeeze(), mode if mode != "CMYK" else "CMYK").save(path)


def write_food101(root: Path) -> None:
    meta = {
        "train": {"apple_pie": ["apple_pie/1", "apple_pie/2"], "sushi": ["sushi/7"]},
        "test": {"apple_pie": ["apple_pie/3"], "sushi": ["sushi/8"]},
    }
    for split, classes in meta.items():
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(classes))
        for images in classes.values():
            for image in images:
                write_image(root / "food-101" / "images" / f"{image}.jpg", (64, 40))


def test_food101_in_the_layout_of_torchvision(tmp_path):
    write_food101(tmp_path)
    got = load("food101", root=str(tmp_path), size=16)
    assert got.train_images.shape == (3, 16, 16, 3)
    assert got.class_names == ("apple_pie", "sushi")
    assert got.train_labels.tolist() == [0, 0, 1]
    assert got.test_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta/train.json", b"", r"meta/train\.json: not a readable list of images"),
        ("meta/train.json", b"<html>", r"meta/train\.json: not a readable list of images"),
        ("meta/train.json", b"\xff\xfe", r"meta/train\.json: not a readable list of images"),
        ("meta/train.json", b"[1, 2]", r"meta/train\.json: expected a mapping of classes"),
        ("meta/train.json", b'{"sushi": []}', r"meta/train\.json: expected a mapping of classes"),
        ("meta/train.json", b'{"sushi": ["sushi/7"]}', r"train\.json and test\.json name different classes"),
        ("meta/train.json", b'{"apple_pie": [1, 2], "sushi": [3]}', r"missing image .*images/1\.jpg \(No such file or directory\)\n.*images/2\.jpg .*\n.*images/3\.jpg"),
        ("images/sushi/8.jpg", b"<html>", r"unreadable image .*images/sushi/8\.jpg \(not an image\)"),
        ("images/sushi/8.jpg", b"", r"unreadable image .*images/sushi/8\.jpg \(not an image\)"),
    ],
)  # fmt: skip
def test_food101_of_other_content_is_refused(tmp_path, name, content, message):
    write_food101(tmp_path)
    (tmp_path / "food-101" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"dataset\.root: .*{message}"):
        load("food101", root=str(tmp_path), size=8)


def write_tree(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                write_image(root / split / name / f"{i}.png")


def test_imagefolder_decodes_every_mode_to_the_center_square(tmp_path):
    write_tree(tmp_path)
    write_image(tmp_path / "train" / "cat" / "gray.png", mode="L", color=100)
    write_image(tmp_path / "train" / "cat" / "alpha.png", mode="RGBA")
    write_image(tmp_path / "train" / "dog" / "print.jpg", mode="CMYK")
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 255
    Image.fromarray(stripes).save(tmp_path / "train" / "dog" / "stripes.png")
    got = load("imagefolder", path=str(tmp_path), size=10)
    assert got.train_images.shape == (10, 10, 10, 3)
    assert got.class_names == ("cat", "dog")
    assert got.train_labels.tolist() == [0] * 5 + [1] * 5
    files = sorted((tmp_path / "train" / "cat").iterdir()) + sorted((tmp_path / "train" / "dog").iterdir())
    at = [f.name for f in files].index("stripes.png")
    assert (got.train_images[at] == 255).all()
    assert (got.train_images[[f.name for f in files].index("gray.png")] == 100).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "train" / "cat" / "1.png").write_bytes(b"not an image"), r"unreadable image .*train/cat/1\.png"),
        (lambda r: (r / "train" / "cat" / "1.png").write_bytes((r / "train" / "cat" / "1.png").read_bytes()[:60]), r"unreadable image .*1\.png"),
        (lambda r: (r / "val" / "dog" / "2.png").write_bytes(b""), r"unreadable image .*val/dog/2\.png"),
        (lambda r: [(r / "train" / "cat" / f"{i}.png").write_bytes(b"") for i in range(3)], r"cat/0\.png \(not an image\)\n.*cat/1\.png .*\n.*cat/2\.png \(not an image\); dataset\.skip_unreadable=true goes on without these 3 of 12 images$"),
        (lambda r: [(r / "train" / name).mkdir() for name in ("empty", "void")], r"train/empty: the class has no images.*\n.*train/void: the class has no images"),
        (lambda r: write_image(r / "train" / "ant" / "0.png"), "class ant is in train, but not in val"),
        (lambda r: (r / "val" / "dog").rename(r / "val" / "wolf"), r"class dog is in train, but not in val\n.*class wolf is in val, but not in train"),
        (lambda r: (r / "val").rename(r / "elsewhere"), "no folder test or val; expected .*/test/<class>/<image>"),
        (lambda r: (r / "train").rename(r / "training"), "train: no such folder; expected .*/train/<class>/<image>"),
        (lambda r: flatten(r / "train"), "train: no class folders; expected .*/train/<class>/<image>"),
        (lambda r: [shutil.rmtree(r / split / "dog") for split in ("train", "val")], "classes: cat; there must be two or more"),
        (lambda r: (r / "train" / "cat" / "again").symlink_to(r / "train" / "cat"), "train/cat/again: a link back to .*train/cat"),
        (lambda r: (r / "train" / "all").symlink_to(r / "train"), "train/all: a link back to .*train, which holds it"),
        (lambda r: (r / "train" / "cat" / "x.png").symlink_to(r / "train" / "cat" / "x.png"), r"cat/x\.png: a link that leads nowhere"),
        (lambda r: (r / "train" / "emu").symlink_to(r / "nowhere"), r"train/emu: a link that leads nowhere"),
        (lambda r: Image.fromarray(RNG.random((9, 9), np.float32)).save(r / "train" / "cat" / "f.tif"), r"f\.tif \(pixels of mode F have no known range"),
        (lambda r: Image.fromarray(np.arange(81, dtype=np.int32).reshape(9, 9)).save(r / "train" / "cat" / "i.tif"), r"i\.tif \(pixels of mode I have no"),
        (lambda r: Image.new("1", (20_000, 20_000)).save(r / "train" / "cat" / "b.png"), r"b\.png \(20000x20000 are 400,000,000 pixels, more than max_pixels="),
    ],
)  # fmt: skip
def test_imagefolder_says_which_file_or_class_is_wrong(tmp_path, spoil, message):
    write_tree(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load("imagefolder", path=str(tmp_path), size=8)


def test_imagefolder_takes_the_classes_that_are_named(tmp_path):
    write_tree(tmp_path)
    for split in ("train", "val"):
        write_image(tmp_path / split / "emu" / "0.png")
    got = load("imagefolder", path=str(tmp_path), size=8, classes=["emu", "cat"])
    assert got.class_names == ("cat", "emu")
    assert got.train_labels.tolist() == [0, 0, 0, 1]
    with pytest.raises(DataError, match=r"dataset\.classes: .*train has no emi; nearest: emu"):
        load("imagefolder", path=str(tmp_path), size=8, classes=["emi", "cat"])


def flatten(folder: Path) -> None:
    for path in [*folder.rglob("*.png")]:
        path.rename(folder / f"{path.parent.name}-{path.name}")
    for path in [*folder.iterdir()]:
        if path.is_dir():
            path.rmdir()


def test_imagefolder_takes_images_at_any_depth_and_through_links_and_nothing_else(tmp_path):
    write_tree(tmp_path / "data")
    cat = tmp_path / "data" / "train" / "cat"
    write_image(cat / "siamese" / "old" / "a.PNG")
    for stray in ("notes.txt", ".DS_Store", "._0.png", ".cache/0.png", "Thumbs.db"):
        (cat / stray).parent.mkdir(exist_ok=True)
        (cat / stray).write_bytes(b"not an image")
    (tmp_path / "data" / "train" / "labels.csv").write_text("not a class")
    (cat / "folder.png").mkdir()
    os.mkfifo(cat / "pipe.png")  # opening it would wait for ever
    write_image(tmp_path / "elsewhere" / "b.png")
    (cat / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "val" / "dog").rename(tmp_path / "dogs")
    (tmp_path / "data" / "val" / "dog").symlink_to(tmp_path / "dogs")
    got = load("imagefolder", path=str(tmp_path / "data"), size=8)
    assert got.train_labels.tolist() == [0] * 5 + [1] * 3
    assert got.test_labels.tolist() == [0] * 3 + [1] * 3


@pytest.mark.filterwarnings("error")
def test_16_bits_become_8_and_the_first_frame_counts(tmp_path):
    deep = np.repeat(np.array([0, 257, 30_000, 65_535], np.uint16), 4).reshape(4, 4)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    (tmp_path / "deep.ppm").write_bytes(b"P5 4 4 65535\n" + deep.astype(">u2").tobytes())
    frames = [Image.new("P", (4, 4), color) for color in (7, 9)]
    for frame in frames:
        frame.putpalette([i for i in range(256) for _ in range(3)])
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "glass.png", transparency=bytes(range(256)))
    names = ("deep.png", "deep.tif", "deep.ppm", "moving.gif", "glass.png")
    got, unreadable = decode([tmp_path / name for name in names], 4)
    assert not unreadable
    for image in got[:3]:
        assert image[:, 0].tolist() == [[0] * 3, [1] * 3, [117] * 3, [255] * 3]
    assert (got[3:] == 7).all()


def test_images_that_do_not_fit_into_memory(tmp_path):
    write_tree(tmp_path)
    with pytest.raises(DataError, match=r"dataset\.size: 12 images of 2000000x2000000 pixels do not fit"):
        load("imagefolder", path=str(tmp_path), size=2_000_000)


def test_a_folder_counts_by_its_files_not_its_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "x.png").write_bytes(b"123")
    assert file_hash(str(tmp_path / "a"), "k") == file_hash(str(tmp_path / "b"), "k")
    (tmp_path / "b" / "train" / "y.png").write_bytes(b"4")
    os.utime(tmp_path / "b")
    assert file_hash(str(tmp_path / "a"), "k") != file_hash(str(tmp_path / "b"), "k")
