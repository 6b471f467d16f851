"""STL-10 on small files in its real format: layout, folds, the pool, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from kdrun.config.compose import Composer
from kdrun.config.effective import effective
from kdrun.core.errors import ConfigError, DataError, KdrunError
from kdrun.core.registry import lookup
from kdrun.data.load import load_dataset
from kdrun.data.sets import stl10
from kdrun.data.splits import make_split

RNG = np.random.default_rng(0)
NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
TRAIN, UNLABELED, TEST, FOLD = 40, 7, 10, 20


def write_stl10(root: Path) -> dict[str, np.ndarray]:
    """(N, 96, 96, 3) images of train, unlabeled and test, and fold_indices.txt with ten lines of 20."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    out = {}
    for split, count in (("train", TRAIN), ("unlabeled", UNLABELED), ("test", TEST)):
        images = out[split] = RNG.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        images.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # channel by channel, column by column
        if split != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    out["folds"] = np.stack([RNG.permutation(TRAIN)[:FOLD] for _ in range(10)])
    (folder / "fold_indices.txt").write_text("".join(" ".join(map(str, line)) + " \n" for line in out["folds"]))
    return out


@pytest.fixture(scope="module")
def composer():
    with Composer() as composer:
        yield composer


@pytest.fixture
def place(tmp_path):
    return tmp_path, write_stl10(tmp_path)


def typed(composer, root, *overrides):
    words = ["dataset=stl10", f"dataset.root={root}", "dataset.verify_md5=false", "student=wrn_37_2", *overrides]
    return composer.typed(words)


def split_of(config):
    arrays = load_dataset(config.dataset)
    split = make_split(
        config, arrays.train_labels, arrays.num_classes, len(arrays.test_labels), arrays.val, arrays.folds
    )
    return arrays, split


def test_images_and_labels_and_the_pool(composer, place, monkeypatch):
    root, written = place
    monkeypatch.setattr(stl10, "CHUNK", 16)
    arrays, split = split_of(typed(composer, root, "method=fixmatch", "dataset.num_labels=10"))
    np.testing.assert_array_equal(arrays.train_images, np.concatenate([written["train"], written["unlabeled"]]))
    np.testing.assert_array_equal(arrays.test_images, written["test"])
    np.testing.assert_array_equal(arrays.train_labels, [*np.arange(TRAIN) % 10, *[-1] * UNLABELED])
    assert arrays.class_names == tuple(NAMES)
    assert arrays.train_images.flags.c_contiguous
    assert len(split.labeled) == 10
    assert split.labeled.max() < TRAIN
    np.testing.assert_array_equal(split.unlabeled, np.arange(TRAIN + UNLABELED))


def test_validation_images_leave_the_pool_and_the_images_without_labels_stay(composer, place):
    _, split = split_of(typed(composer, place[0], "dataset.num_labels=10", "dataset.val_fraction=0.25"))
    assert len(split.val) == 10
    assert not set(split.unlabeled) & set(split.val)
    assert len(split.unlabeled) == TRAIN + UNLABELED - 10


def test_folds_are_read_once_and_chosen_by_the_split(composer, place):
    root, written = place
    splits = []
    for fold in (0, 1, 9):
        config = typed(composer, root, f"dataset.num_labels={FOLD}", f"dataset.fold={fold}", "dataset.split_seed=5")
        assert effective(config).dataset.split_seed is None  # nothing is drawn
        arrays, split = split_of(config)
        np.testing.assert_array_equal(split.labeled, np.sort(written["folds"][fold]))
        assert len(split.unlabeled) == TRAIN + UNLABELED
        splits.append(arrays.train_images)
    assert splits[0] is splits[2]  # 3 GB are not read anew for each seed of a sweep


def test_another_pool_takes_the_place_of_the_dataset_s_own(composer, place):
    root, _ = place
    np.savez(root / "pool.npz", images=np.full((3, 96, 96, 3), 7, np.uint8))
    words = ["method=fixmatch", "dataset.num_labels=10", f"dataset.unlabeled={root / 'pool.npz'}"]
    (root / "stl10_binary" / "unlabeled_X.bin").unlink()
    arrays, split = split_of(typed(composer, root, *words))
    np.testing.assert_array_equal(split.unlabeled, np.arange(TRAIN, TRAIN + 3))
    assert (arrays.train_images[TRAIN:] == 7).all()


def test_the_experiment_s_seed_is_the_fold_and_a_teacher_sees_all_labels(composer):
    config = composer.typed(["experiment=fixmatch/stl10", "seed=3"])
    assert (config.dataset.fold, config.dataset.num_labels) == (3, 1000)
    words = [
        "dataset=stl10",
        "dataset.num_labels=1000",
        "dataset.fold=3",
        "method=distill",
        "loss=kd",
        "teacher=wrn_37_2",
    ]
    config = composer.typed(words)
    teacher = config.method_class.requires(config)["teacher"].dataset
    assert (teacher.fold, teacher.num_labels) == (None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.fold=10"], r"dataset\.fold"),
        (["dataset.fold=0"], "dataset.fold: 0 names 1,000 labeled images; give num_labels=1000"),
        (["dataset.fold=0", "dataset.num_labels=4/class"], "give num_labels=1000"),
        (["dataset.fold=0", "dataset.num_labels=20", "dataset.val_fraction=0.1"], "val_fraction; set it to 0$"),
        (["dataset.fold=0", "dataset.num_labels=20", "dataset.upstream=0.1"], "upstream; set it to 0$"),
        (["dataset.fold=0", "dataset.num_labels=19"], "19, but fold 0 names 20 labeled images"),
    ],
)
def test_what_does_not_go_with_a_fold(composer, place, words, message):
    with pytest.raises(ConfigError, match=message):
        split_of(typed(composer, place[0], *words))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_X.bin", b"", r"train_X\.bin: 0 bytes, expected a multiple of 3 \* 96 \* 96"),
        ("unlabeled_X.bin", b"1234", r"unlabeled_X\.bin: 4 bytes"),
        ("train_y.bin", b"\x0b" * TRAIN, "labels from 11 to 11, allowed 1 to 10"),
        ("test_y.bin", b"\x00" * TEST, "labels from 0 to 0, allowed 1 to 10"),
        ("train_y.bin", b"\x01", "47 images but labels of shape"),
        ("fold_indices.txt", b"0 1 2\n", "1 lines, expected 10 folds"),
        ("fold_indices.txt", b"0 1 99\n" * 10, "line 1 must hold numbers from 0 to 39"),
        ("fold_indices.txt", b"\xff\xfe", "line 1: not UTF-8"),
        ("class_names.txt", b"\xff\xfe", "line 1: not UTF-8"),
    ],
)
def test_other_content_is_refused(place, name, content, message):
    root, _ = place
    (root / "stl10_binary" / name).write_bytes(content)
    part = lookup("dataset", "stl10", "")
    with pytest.raises(KdrunError, match=rf"dataset\.root: {root}.*{message}"):
        part.load(part.Config(name="stl10", root=str(root), verify_md5=False))


def test_a_file_that_is_not_the_published_one(place):
    part = lookup("dataset", "stl10", "")
    with pytest.raises(DataError, match=r"train_X\.bin is damaged or not the published file"):
        part.load(part.Config(name="stl10", root=str(place[0])))
