"""Published datasets on small files in their real formats, and what is said when they are absent or damaged."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from kdrun.config import file_hash
from kdrun.data.dataset import load_dataset
from kdrun.errors import DataError
from kdrun.registry import lookup
from kdrun.schema import build

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


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 10], [-1, 0, 1, 2, 3]])
def test_labels_out_of_range(tmp_path, labels):
    write_cifar10(tmp_path)
    content = {"data": np.zeros((5, 3072), np.uint8), "labels": labels}
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=r"train labels: from .* allowed 0 to 9"):
        load("cifar10", root=str(tmp_path), verify_md5=False)


@pytest.mark.parametrize(
    ("name", "archive"),
    [("cifar10", "cifar-10-python.tar.gz"), ("svhn", "train_32x32.mat"), ("food101", "food-101.tar.gz")],
)
def test_absent_files_without_a_network(tmp_path, monkeypatch, name, archive):
    import urllib.error
    import urllib.request

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(
        DataError,
        match=rf"is not there and cannot be downloaded \(.*no network.*\); put the content of {archive} below",
    ):
        load(name, root=str(tmp_path / "data"))
    with pytest.raises(
        DataError, match=rf"is not there; put the content of {archive} below .*, or allow dataset\.download"
    ):
        load(name, root=str(tmp_path / "data"), download=False)


def write_svhn(root: Path) -> dict[str, np.ndarray]:
    out = {}
    for split, n in (("train", 20), ("test", 10)):
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


def write_image(path: Path, size=(20, 14), mode="RGB", color=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
    pixels = (
        RNG.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
        if color is None
        else np.full((size[1], size[0], channels), color, np.uint8)
    )
    Image.fromarray(pixels.squeeze(), mode if mode != "CMYK" else "CMYK").save(path)


def test_food101_in_the_layout_of_torchvision(tmp_path):
    meta = {
        "train": {"apple_pie": ["apple_pie/1", "apple_pie/2"], "sushi": ["sushi/7"]},
        "test": {"apple_pie": ["apple_pie/3"], "sushi": ["sushi/8"]},
    }
    for split, classes in meta.items():
        (tmp_path / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (tmp_path / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(classes))
        for images in classes.values():
            for image in images:
                write_image(tmp_path / "food-101" / "images" / f"{image}.jpg", (64, 40))
    got = load("food101", root=str(tmp_path), size=16)
    assert got.train_images.shape == (3, 16, 16, 3)
    assert got.class_names == ("apple_pie", "sushi")
    assert got.train_labels.tolist() == [0, 0, 1]
    assert got.test_labels.tolist() == [0, 1]


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
        (lambda r: (r / "train" / "empty").mkdir(), r"train/empty: the class has no images"),
        (lambda r: write_image(r / "train" / "ant" / "0.png"), "class ant is not in both train and val"),
        (lambda r: (r / "val").rename(r / "elsewhere"), "val: no such folder"),
    ],
)  # fmt: skip
def test_imagefolder_says_which_file_or_class_is_wrong(tmp_path, spoil, message):
    write_tree(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load("imagefolder", path=str(tmp_path), size=8)


def test_a_folder_counts_by_its_files_not_its_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "x.png").write_bytes(b"123")
    assert file_hash(str(tmp_path / "a"), "k") == file_hash(str(tmp_path / "b"), "k")
    (tmp_path / "b" / "train" / "y.png").write_bytes(b"4")
    os.utime(tmp_path / "b")
    assert file_hash(str(tmp_path / "a"), "k") != file_hash(str(tmp_path / "b"), "k")
