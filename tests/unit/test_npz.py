"""Datasets from .npz files: layouts that are read, and files that are refused in one line."""

import pickle
import warnings
import zipfile

import numpy as np
import pytest

from kdrun.core.errors import ConfigError, DataError
from kdrun.core.schema import build
from kdrun.data.load import load_dataset
from kdrun.data.sets.npz import Npz

RNG = np.random.default_rng(0)


def arrays(shape=(6, 5, 3), n=12, **changes):
    made = {
        "train_images": RNG.integers(0, 256, (n, *shape), dtype=np.uint8),
        "train_labels": np.arange(n) % 4,
        "test_images": RNG.integers(0, 256, (4, *shape), dtype=np.uint8),
        "test_labels": np.arange(4),
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def config(path, **keys):
    return Npz.Config(name="npz", path=str(path), **keys)


@pytest.fixture
def load(tmp_path):
    def loaded(content, **keys):
        np.savez(tmp_path / "data.npz", **content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return load_dataset(config(tmp_path / "data.npz", **keys))

    return loaded


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_last(load, channels):
    content = arrays((6, 5, channels))
    got = load(content)
    np.testing.assert_array_equal(got.train_images, content["train_images"])
    np.testing.assert_array_equal(got.test_images, content["test_images"])
    np.testing.assert_array_equal(got.train_labels, content["train_labels"])
    assert got.train_images.dtype == np.uint8
    assert got.train_labels.dtype == got.test_labels.dtype == np.int64
    assert got.num_classes == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first(load, channels):
    content = arrays((channels, 8, 6))
    got = load(content)
    assert got.train_images.shape == (12, 8, 6, channels)
    assert got.train_images.flags.c_contiguous
    for i in range(channels):
        np.testing.assert_array_equal(got.train_images[..., i], content["train_images"][:, i])


def test_no_channels(load):
    content = arrays((6, 5))
    np.testing.assert_array_equal(load(content).train_images[..., 0], content["train_images"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fractions_become_the_bytes_that_they_came_from(load, dtype):
    content = arrays()
    fractions = {name: (content[name] / 255).astype(dtype) for name in ("train_images", "test_images")}
    np.testing.assert_array_equal(load({**content, **fractions}).train_images, content["train_images"])


def test_fractions_are_rounded(load):
    images = np.full((12, 6, 5, 3), 0.999)
    images[0, 0, 0] = [0.0, 0.001, 0.003]
    got = load(arrays(train_images=images)).train_images
    assert got[0, 0, 0].tolist() == [0, 0, 1]
    assert got[1].min() == got[1].max() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16])
def test_labels_of_any_integer_type(load, dtype):
    got = load(arrays(train_labels=(np.arange(12) % 4).astype(dtype)))
    assert got.train_labels.tolist() == [i % 4 for i in range(12)]


def test_statistics_are_those_of_the_training_images(load):
    content = arrays()
    got = load(content)
    pixels = content["train_images"].reshape(-1, 3) / 255
    np.testing.assert_allclose(got.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(got.std, pixels.std(0), atol=1e-6)


def test_constant_channel_can_still_be_divided_by(load):
    content = arrays(train_images=np.full((12, 6, 5, 3), 7, dtype=np.uint8))
    assert min(load(content).std) > 0


def test_given_statistics_and_class_names(load):
    content = arrays(class_names=np.array(["a", "b", "c", "d", "never seen"]))
    got = load(content, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])
    assert (got.mean, got.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert got.class_names == ("a", "b", "c", "d", "never seen")


def with_nan(shape=(12, 6, 5, 3)):
    images = np.zeros(shape)
    images[0, 0, 0] = np.nan
    return images


REFUSED = {
    "no test labels": (arrays(test_labels=None), "test_labels"),
    "signed images": (arrays(train_images=np.zeros((12, 6, 5, 3), np.int64)), "uint8 or float"),
    "boolean images": (arrays(train_images=np.zeros((12, 6, 5, 3), bool)), "uint8 or float"),
    "fractions above one": (arrays(train_images=np.full((12, 6, 5, 3), 1.01)), r"\[0, 1\]"),
    "negative fractions": (arrays(test_images=np.full((4, 6, 5, 3), -0.01)), r"test_images.*\[0, 1\]"),
    "not a number": (arrays(train_images=with_nan()), r"\[0, 1\]"),
    "five channels": (arrays((6, 6, 5)), "expected"),
    "no channel": (arrays((6, 6, 0)), "expected"),
    "flat images": (arrays((30,)), "expected"),
    "five dimensions": (arrays((2, 6, 5, 3)), "expected"),
    "sizes that differ": (arrays(test_images=np.zeros((4, 5, 5, 3), np.uint8)), "training images"),
    "channels that differ": (arrays(test_images=np.zeros((4, 6, 5, 1), np.uint8)), "training images"),
    "float labels": (arrays(train_labels=np.arange(12) / 4), "train_labels.*integers"),
    "one-hot labels": (arrays(train_labels=np.eye(12, dtype=np.int64)), "train_labels.*integers"),
    "too few labels": (arrays(train_labels=np.arange(11) % 4), "12 images"),
    "negative label": (arrays(train_labels=np.arange(12) % 4 - 1), "from -1"),
    "test label never trained": (arrays(test_labels=np.array([0, 1, 2, 4])), "to 4, allowed 0 to 3"),
    "fewer names than classes": (arrays(class_names=np.array(["a", "b"])), "allowed 0 to 1"),
    "one name that is no list": (arrays(class_names=np.array("abcd")), "class_names"),
    "more labels than images could have": (
        arrays(train_labels=np.full(12, 2**40)),
        "train_labels: from 0 to 1099511627776, allowed 0 to 11",
    ),
    "label that a cast would wrap": (arrays(train_labels=np.full(12, 2**64 - 1, np.uint64)), "to 18446744073709551615"),
    "one class": (
        arrays(train_labels=np.zeros(12, int), test_labels=np.zeros(4, int)),
        r"data\.npz: classes: 0; there must be two",
    ),
    "no images": (arrays(n=0), "no images"),
    "no test images": (arrays(test_images=np.zeros((0, 6, 5, 3), np.uint8), test_labels=np.arange(0)), "no images"),
    "no float images": (arrays(n=0, train_images=np.zeros((0, 6, 5, 3))), "no images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arrays_are_refused(load, case):
    content, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        load(content)


@pytest.mark.parametrize("keys", [{"mean": [0.5]}, {"std": [0.5] * 4}])
def test_statistics_for_another_number_of_channels_are_refused(load, keys):
    with pytest.raises(ConfigError, match=rf"dataset\.{next(iter(keys))}: expected 3 numbers"):
        load(arrays(), **keys)


@pytest.mark.parametrize("std", [[0.2, 0.0, 0.2], [-1.0] * 3])
def test_impossible_statistics_are_refused(tmp_path, std):
    node = {"name": "npz", "path": str(tmp_path), "std": std}
    with pytest.raises(ConfigError, match=r"dataset\.std\.\d: must be greater than 0"):
        build(Npz.Config, node, "dataset")


def write_truncated(path):
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-100])


def write_damaged(path):
    np.savez_compressed(path, **arrays(n=200))
    data = bytearray(path.read_bytes())
    data[300:400] = bytes(100)
    path.write_bytes(data)


def write_bare_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def write_zip_of_text(path):
    with zipfile.ZipFile(path, "w") as file:
        for name in arrays():
            file.writestr(f"{name}.npy", "1 2 3")


UNREADABLE = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("images"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"train_images": [1]})),
    "object labels": lambda path: np.savez(path, **arrays(train_labels=np.array([0, None] * 6))),
    "truncated": write_truncated,
    "damaged": write_damaged,
    "npy": write_bare_array,
    "zip of text": write_zip_of_text,
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_file_is_refused(tmp_path, case):
    path = tmp_path / "data.npz"
    UNREADABLE[case](path)
    with pytest.raises(DataError, match=r"dataset\.path.*data\.npz"):
        Npz.load(config(path))


def test_loaded_arrays_are_shared_between_runs_that_differ_in_labels_only(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays())
    first = load_dataset(config(path))
    assert load_dataset(config(path, num_labels=4, val_fraction=0.5, val_seed=3, split_seed=1)) is first
    assert load_dataset(config(path, mean=[0.0] * 3)) is not first


def test_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays())
    load_dataset(config(path))
    changed = arrays(n=16)
    np.savez(path, **changed)
    assert len(load_dataset(config(path)).train_images) == 16


# ------------------------------------------------------------------------------------- labels as people number them


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4], [3, 7, 21, 30], [0, 1, 2, 9], [100, 200, 300, 10**12]])
@pytest.mark.parametrize("column", [False, True])
def test_labels_with_gaps_are_numbered_through(load, numbers, column):
    shape = (-1, 1) if column else (-1,)  # MedMNIST has a column
    labels = np.array(numbers)
    got = load(arrays(train_labels=labels[np.arange(12) % 4].reshape(shape), test_labels=labels.reshape(shape)))
    assert got.train_labels.tolist() == [k % 4 for k in range(12)]
    assert got.test_labels.tolist() == [0, 1, 2, 3]
    assert got.class_names == tuple(map(str, numbers))
    assert not got.named  # they are numbers still
    (line,) = got.warnings
    assert f"labels {', '.join(map(str, numbers))} are classes 0 to 3 now, called by their labels" in line


def test_labels_without_gaps_are_as_ever(load):
    got = load(arrays())
    assert got.warnings == ()
    assert got.class_names == tuple("0123")


def test_names_go_with_the_labels_in_their_order(load):
    names = np.array(["cat", "dog", "emu", "fox"])
    got = load(arrays(train_labels=np.arange(12) % 4 + 1, test_labels=np.arange(4) + 1, class_names=names))
    assert got.class_names == tuple(names)
    assert got.named
    assert got.train_labels.tolist() == [k % 4 for k in range(12)]
    assert "called cat, dog, emu, fox" in got.warnings[0]


def test_a_class_that_is_named_needs_no_image(load):
    got = load(
        arrays(
            train_labels=np.arange(12) % 2 * 2, test_labels=np.array([0, 2, 0, 2]), class_names=np.array(list("abc"))
        )
    )
    assert got.class_names == ("a", "b", "c")
    assert got.train_labels.tolist() == [k % 2 * 2 for k in range(12)]
    assert got.warnings == ()


def test_labels_may_be_names(load):
    words = np.array(["dog", "cat", "emu", "fox"])
    got = load(arrays(train_labels=words[np.arange(12) % 4], test_labels=words))
    assert got.class_names == ("cat", "dog", "emu", "fox")
    assert got.test_labels.tolist() == [1, 0, 2, 3]
    got = load(arrays(train_labels=words[np.arange(12) % 4], test_labels=words, class_names=words))
    assert got.test_labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="label 'fox' is not in class_names"):
        load(arrays(train_labels=words[np.arange(12) % 4], test_labels=words, class_names=words[:3]))
    with pytest.raises(DataError, match="some labels are names, others are numbers"):
        load(arrays(train_labels=words[np.arange(12) % 4]))


def test_gaps_are_refused_by_choice(load):
    content = arrays(train_labels=np.arange(12) % 4 + 1, test_labels=np.arange(4) + 1)
    with pytest.raises(DataError, match=r"labels are 1, 2, 3, 4, not 0 to 3; dataset\.gaps=map numbers them through"):
        load(content, gaps="refuse")
    assert load(arrays(), gaps="refuse").num_classes == 4


@pytest.mark.parametrize(
    "labels", [np.eye(12, 4, dtype=int), np.zeros((12, 14), int), np.zeros((12, 1, 1), int), np.array(3)]
)
def test_several_labels_an_image_are_refused(load, labels):
    with pytest.raises(DataError, match="train_labels: expected integers or names"):
        load(arrays(train_labels=labels))


# ------------------------------------------------------------------------------------------------ official validation


def with_val(n=5, **changes):
    images = RNG.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
    return arrays(val_images=images, val_labels=np.arange(n) % 4, **changes)


@pytest.mark.parametrize("val", ["auto", "official"])
def test_val_images_are_the_validation_images(load, val):
    content = with_val()
    got = load(content, val=val)
    assert got.val.tolist() == [12, 13, 14, 15, 16]
    np.testing.assert_array_equal(got.train_images[12:], content["val_images"])
    assert got.train_labels[12:].tolist() == [0, 1, 2, 3, 0]
    assert got.mean == load(arrays(**{name: content[name] for name in arrays()})).mean  # of what is trained on
    assert got.warnings == ()


def test_val_images_may_be_part_of_the_draw(load):
    got = load(with_val(), val="drawn")
    assert got.val is None
    assert len(got.train_images) == 17


def test_official_validation_that_is_not_there_is_refused(load):
    with pytest.raises(DataError, match="no array val_images, val_labels"):
        load(arrays(), val="official")
    with pytest.raises(DataError, match="no array val_labels"):
        load({name: value for name, value in with_val().items() if name != "val_labels"})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"val_labels": np.arange(4)}, "val: 5 images but labels of shape"),
        ({"val_images": np.zeros((5, 6, 6, 3), np.uint8)}, "validation images"),
        ({"val_labels": np.array([0, 1, 2, 3, 9])}, "val_labels: from 0 to 9"),
    ],
)
def test_wrong_validation_arrays_are_refused(load, change, line):
    with pytest.raises(DataError, match=line):
        load({**with_val(), **change})


# ------------------------------------------------------------------------------------------------------ unread arrays


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("class_name", "class_names"), ("val_image", "val_images"), ("meta", None), ("val_label", "val_labels")],
)
def test_an_array_that_is_not_read_is_named_with_the_nearest(load, name, nearest):
    (line,) = load(arrays(**{name: np.zeros(3)})).warnings
    assert f"array {name} is not read" in line
    assert (f"nearest: {nearest}" if nearest else "none of 7 names is near") in line


def test_a_missing_array_is_told_with_the_nearest(load):
    content = arrays(train_labels=None, train_label=np.arange(12) % 4)
    with pytest.raises(DataError, match=r"no array train_labels \(has .*\); nearest: train_label$"):
        load(content)


# --------------------------------------------------------------------------------------------------------------- keys


def test_only_runs_that_are_read_in_another_way_have_another_key(tmp_path):
    def identity(content, **keys):
        np.savez(tmp_path / "data.npz", **content)
        return Npz.identity(config(tmp_path / "data.npz", **keys))

    gaps = {"train_labels": np.arange(12) % 4 + 1, "test_labels": np.arange(4) + 1}
    assert identity(arrays()) is None
    assert identity(arrays(class_names=np.array(list("abcde")), extra=np.zeros(2))) is None
    assert identity(arrays(train_labels=(np.arange(12) % 4)[:, None])) is None
    assert identity(arrays(**gaps)) == "labels numbered through"
    assert identity(with_val()) == "official validation"
    assert identity(with_val(), val="official") is None  # the configuration says it
    assert identity({name: value for name, value in with_val().items() if name != "val_labels"}) is None
    assert identity({"x": np.zeros(3)}) is None
    assert identity(arrays(n=0)) is None
    (tmp_path / "data.npz").write_bytes(b"nothing")
    assert Npz.identity(config(tmp_path / "data.npz")) is None


# ----------------------------------------------------------------------------------------------------- every view

VIEWS = {
    "weak": [], "crops": ["views.weak.scale=[0.5,1]"], "mixup": ["views=mixup"], "cutmix": ["views.mix.kind=cutmix"],
    "crop first": ["views.weak.scale=[0.5,1]", "views.size=6"], "strong": ["method=fixmatch"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_one_to_four_channels_go_with_every_view_or_are_refused(tmp_path, monkeypatch, channels, views):
    from kdrun.config.compose import Composer
    from kdrun.training.check import check
    from kdrun.training.runner import run

    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **arrays((8, 8, channels), n=24))
    words = ["method=supervised", "loss=ce", "teacher=none", "tracker=none", "dataset=npz", "dataset.path=data.npz",
             "student.args.width=4", "schedule.steps=2", "schedule.batch_size=4", "dataset.num_labels=8"]  # fmt: skip
    with Composer() as composer:
        asked = composer.typed([*words, *VIEWS[views]])
    if views == "strong" and channels in (2, 4):
        with pytest.raises(ConfigError, match=f"strong views are of gray or color images, and these have {channels}"):
            check(asked)
        return
    check(asked)
    assert run(asked)["status"] == "done"
