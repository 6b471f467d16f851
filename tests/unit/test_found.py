"""Which files a dataset is made of, whether they have changed, and what of them counts for the run key."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdrun.config.dataset import Facts
from kdrun.core import contents
from kdrun.core.contents import Contents
from kdrun.core.registry import lookup
from kdrun.core.remembered import CHEAP, Remembered
from kdrun.data.found import found, has_official_counts, identity_of_copy
from kdrun.data.listing import Listing
from kdrun.data.load import content_of, load_dataset
from kdrun.data.sets.folders import ImageNet
from kdrun.data.sets.tiny_imagenet import TinyImageNet
from tests.unit.test_published import write_image, write_tree


def config_of(name: str, **keys):
    return lookup("dataset", name, "dataset.name").Config(name=name, **keys)


def contents_of(folder: Path) -> Contents:
    return Contents(sorted(folder.glob("*.txt")), folder, folder / "outputs")


@pytest.fixture
def files(tmp_path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"content {name}")
    return tmp_path


@pytest.fixture
def hashed(monkeypatch) -> list[Path]:
    read, real = [], contents._file_digest
    monkeypatch.setattr(contents, "_file_digest", lambda path: read.append(path) or real(path))
    return read


def test_files_are_read_once_as_long_as_they_stay(files, hashed):
    first = contents_of(files).read()
    assert contents_of(files).known == contents_of(files).read() == first
    assert len(hashed) == 3
    shutil.copytree(files, files / "elsewhere", ignore=lambda *_: ["outputs", "elsewhere"])
    assert contents_of(files / "elsewhere").read() == first  # the names below the folder and the contents count


def test_files_that_change_places_are_seen_though_sizes_and_times_stay(files):
    first = contents_of(files).read()
    for name in "ab":
        os.utime(files / f"{name}.txt", ns=(5, 5))
    assert contents_of(files).read() == first
    a, b, other = (files / name for name in ("a.txt", "b.txt", "other"))
    a.rename(other)
    b.rename(a)
    other.rename(b)
    assert contents_of(files).known is None
    assert contents_of(files).read() != first


def test_what_was_just_written_is_read_when_a_later_change_shows(files):
    (files / "a.txt").write_text("content 1")
    began = time.time()
    first = contents_of(files).read()
    assert time.time() - (files / "a.txt").stat().st_ctime >= contents.TICK
    (files / "a.txt").write_text("content 2")
    assert contents_of(files).read() != first
    assert time.time() - began < 5


def test_an_unreadable_file_counts_as_empty_and_is_not_remembered(files, monkeypatch):
    real = contents.file_sha256
    monkeypatch.setattr(contents, "file_sha256", lambda path: real(path if path.name != "b.txt" else files / "gone"))
    assert contents_of(files).read()
    assert contents_of(files).known is None


def test_what_is_no_file_is_missing(files):
    (files / "b.txt").unlink()
    os.mkfifo(files / "b.txt")
    assert contents_of(files).missing == [f"{files / 'b.txt'} (not a regular file)"]


def test_what_is_cheap_is_looked_up_anew_and_what_is_dear_after_a_while(monkeypatch):
    now, looked = [0.0], []
    monkeypatch.setattr("kdrun.core.remembered.time.monotonic", lambda: now[0])
    values: Remembered[str, int] = Remembered()

    def ask(key: str, took: float) -> int:
        def look() -> int:
            now[0] += took
            looked.append(key)
            return len(looked)

        return values.value(key, look)

    assert [ask("cheap", CHEAP / 2) for _ in range(3)] == [1, 2, 3]
    assert [ask("dear", 1.0) for _ in range(3)] == [4, 4, 4]
    now[0] += 20
    assert ask("dear", 1.0) == 5


def test_a_published_name_has_its_listing_in_the_key_where_other_files_lie(tmp_path):
    assert ImageNet.identity(config_of("imagenet", root=str(tmp_path))) is None  # nothing there: planned all the same
    write_tree(tmp_path)
    config = config_of("imagenet", root=str(tmp_path))
    first = ImageNet.identity(config)
    assert first is not None
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "train" / "cat" / "list.txt").write_text("x")
    assert ImageNet.identity(config) == first
    assert ImageNet.identity(config.replace(classes=["cat", "dog"])) == first
    write_image(tmp_path / "train" / "cat" / "7.png")
    assert ImageNet.identity(config) != first


@pytest.mark.parametrize(
    ("facts", "counts", "fits"),
    [
        (Facts(classes=2, train=3, test=1), (3, 0, 1), True),
        (Facts(classes=2, train=3, test=1), (2, 0, 1), False),
        (Facts(classes=2, train=3, test=1), (3, 1, 1), False),
        (Facts(classes=2, train=3, val=1, test=1), (3, 1, 1), True),
        (Facts(classes=2, train=4), (3, 0, 1), True),  # no official test images: all of them
        (Facts(classes=2, train=4), (3, 0, 2), False),
        (Facts(classes=3, train=4), (3, 0, 1), False),
    ],
)
def test_official_counts(facts, counts, fits):
    train, val, test = ([(Path(str(k)), k % 2) for k in range(n)] for n in counts)
    listing = Listing(train, test, ["a", "b"], Path(), "dataset.root", val)
    assert has_official_counts(facts, listing) is fits


def test_images_that_fit_the_official_counts_keep_the_key(tmp_path, monkeypatch):
    folder = tmp_path / TinyImageNet.folder
    for name in ("n1", "n2"):
        write_image(folder / "train" / name / "images" / "0.png")
        write_image(folder / "val" / "images" / f"{name}.png")
    (folder / "wnids.txt").write_text("n1\nn2\n")
    (folder / "val" / "val_annotations.txt").write_text("n1.png\tn1\nn2.png\tn2\n")
    config = config_of("tiny_imagenet", root=str(tmp_path))
    assert TinyImageNet.identity(config) is not None
    monkeypatch.setattr(TinyImageNet, "facts", replace(TinyImageNet.facts, classes=2, train=2, test=2))
    write_image(folder / "train" / "n1" / "images" / "1.png")
    assert TinyImageNet.identity(config) is not None
    (folder / "train" / "n1" / "images" / "1.png").unlink()
    assert TinyImageNet.identity(config) is None


def test_a_copy_that_nobody_compares_has_its_names_and_sizes_in_the_key(files):
    paths = sorted(files.glob("*.txt"))
    one = identity_of_copy(paths)
    assert one is not None
    assert identity_of_copy(paths, one) is None
    assert identity_of_copy([*paths, files / "gone"]) is None
    paths[0].write_text("longer than it was")
    assert identity_of_copy(paths, one) not in (None, one)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_the_check_of_hashes_decides_whether_a_listing_counts(tmp_path, name):
    part = lookup("dataset", name, "dataset.name")
    checked, unchecked = (config_of(name, root=str(tmp_path), verify_md5=verify) for verify in (True, False))
    assert part.identity(checked) is part.identity(unchecked) is None
    for path in part.sources(checked):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert part.identity(checked) is None
    assert part.identity(unchecked) is not None


def test_labels_count_though_the_images_stay(tmp_path):
    folder = tmp_path / TinyImageNet.folder
    for name in ("n1", "n2"):
        write_image(folder / "train" / name / "images" / "0.png")
        write_image(folder / "val" / "images" / f"{name}.png")
    (folder / "wnids.txt").write_text("n1\nn2\n")
    config = config_of("tiny_imagenet", root=str(tmp_path))
    told = []
    for lines in ("n1.png\tn1\nn2.png\tn2\n", "n1.png\tn2\nn2.png\tn1\n"):
        (folder / "val" / "val_annotations.txt").write_text(lines)
        told.append((content_of(config, tmp_path / "o"), found(config, tmp_path / "o").key))
    assert told[0][0] != told[1][0]
    assert told[0][1] != told[1][1]


def test_arrays_are_read_anew_when_their_files_change(tmp_path):
    def write(value: int) -> None:
        images = np.full((4, 8, 8), value, np.uint8)
        labels = np.arange(4) % 2
        np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)

    config = config_of("npz", path=str(tmp_path / "d.npz"))
    write(1)
    one = load_dataset(config, tmp_path / "o")
    assert load_dataset(config, tmp_path / "o") is one
    write(2)
    assert load_dataset(config, tmp_path / "o").train_images.max() == 2
