"""Splits: balance, stratification, independence of seeds, and what a split file may hold."""

import pickle
import zipfile
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdrun.config.nodes import from_nodes
from kdrun.config.run import DebugConfig
from kdrun.core.errors import ConfigError, DataError, KdrunError
from kdrun.data.splits import Split, make_split, write_split

LABELS = np.repeat(np.arange(5), [30, 24, 20, 16, 10])


@cache
def base():
    return from_nodes(
        {
            "method": {"name": "supervised"},
            "dataset": {"name": "digits"},
            "student": "resnet8",
            "loss": {"ce": {"name": "ce"}},
            "schedule": {"steps": 1},
        }
    )


def split_of(labels=LABELS, seed=0, **dataset):
    config = base().replace(seed=seed, dataset=base().dataset.replace(**{"val_fraction": 0.0, **dataset}))
    return make_split(config, np.asarray(labels), int(np.max(labels)) + 1, num_test=7)


def counts(index, labels=LABELS):
    return np.bincount(np.asarray(labels)[index], minlength=int(np.max(labels)) + 1)


@st.composite
def shuffled_labels(draw):
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=8))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


@settings(max_examples=100, deadline=None)
@given(shuffled_labels(), st.data())
def test_labeled_set_is_as_balanced_as_the_classes_allow(labels, data):
    num_labels = data.draw(st.integers(int(labels.max()) + 1, len(labels)))
    split = split_of(labels, num_labels=num_labels)
    given_, sizes = counts(split.labeled, labels), np.bincount(labels)
    assert len(split.labeled) == len(set(split.labeled)) == num_labels
    for taken, size in zip(given_, sizes, strict=True):
        assert taken == size or taken >= given_.max() - 1


def test_labels_of_each_class_and_a_share_of_the_images():
    assert counts(split_of(num_labels="10/class").labeled).tolist() == [10] * 5
    np.testing.assert_array_equal(split_of(num_labels="4/class").labeled, split_of(num_labels=20).labeled)
    assert len(split_of(num_labels="17.5%").labeled) == 17  # of 100
    with pytest.raises(ConfigError, match=r"^dataset\.num_labels: 11/class, but class 4 has 10 .* at most 10/class"):
        split_of(num_labels="11/class")
    with pytest.raises(ConfigError, match=r"^dataset\.num_labels: 4 is fewer than the 5 classes"):
        split_of(num_labels="4%")


@settings(max_examples=100, deadline=None)
@given(shuffled_labels(), st.floats(0, 0.6), st.integers(0, 3), st.data())
def test_parts_are_nested_disjoint_and_complete(labels, fraction, seed, data):
    num_val = round(len(labels) * fraction)
    assume(len(labels) - num_val > labels.max())
    num_labels = data.draw(st.integers(int(labels.max()) + 1, len(labels) - num_val))
    split = split_of(labels, seed, num_labels=num_labels, val_fraction=fraction)
    labeled, unlabeled, val = set(split.labeled), set(split.unlabeled), set(split.val)
    assert labeled <= unlabeled
    assert not unlabeled & val
    assert unlabeled | val == set(range(len(labels)))
    assert len(labeled) == num_labels
    for part in (split.labeled, split.unlabeled, split.val):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


@settings(max_examples=100, deadline=None)
@given(shuffled_labels(), st.floats(0, 0.5))
def test_validation_is_stratified(labels, fraction):
    assume(len(labels) - round(len(labels) * fraction) > labels.max())
    split = split_of(labels, val_fraction=fraction)
    assert len(split.val) == round(len(labels) * fraction)
    assert (np.abs(counts(split.val, labels) - np.bincount(labels) * fraction) < 1).all()


def test_equal_classes_divide_exactly():
    labels = np.tile(np.arange(4), 25)
    assert counts(split_of(labels, num_labels=40).labeled, labels).tolist() == [10] * 4


def test_used_up_class_gives_way_to_the_others():
    labels = np.repeat(np.arange(3), [2, 20, 20])
    assert counts(split_of(labels, num_labels=20).labeled, labels).tolist() == [2, 9, 9]
    assert counts(split_of(labels, num_labels=42).labeled, labels).tolist() == [2, 20, 20]


def test_every_class_gets_the_remainder_for_some_seed():
    labels = np.tile(np.arange(4), 10)
    extra = [int(counts(split_of(labels, seed, num_labels=9).labeled, labels).argmax()) for seed in range(40)]
    assert set(extra) == {0, 1, 2, 3}


def test_every_image_is_drawn_for_some_seed():
    drawn = set().union(*(split_of(seed=seed, num_labels=25).labeled.tolist() for seed in range(40)))
    assert drawn == set(range(len(LABELS)))


def test_no_num_labels_takes_the_whole_pool():
    split = split_of(val_fraction=0.2)
    assert split.labeled.tolist() == split.unlabeled.tolist()
    assert len(split.labeled) == 80


def test_validation_depends_on_val_seed_only():
    first = split_of(num_labels=20, val_fraction=0.2)
    assert split_of(num_labels=30, val_fraction=0.2, seed=5, split_seed=9).val.tolist() == first.val.tolist()
    assert split_of(num_labels=20, val_fraction=0.2, val_seed=1).val.tolist() != first.val.tolist()


def test_split_seed_stands_in_for_the_seed():
    by_seed = [split_of(num_labels=20, seed=seed) for seed in (1, 2)]
    assert by_seed[0].hash != by_seed[1].hash
    assert split_of(num_labels=20, seed=2, split_seed=1).hash == by_seed[0].hash


def test_drawing_leaves_the_global_generator_alone():
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    split_of(num_labels=20, val_fraction=0.2)
    assert np.random.random(4).tolist() == expected.tolist()


def index(*values, dtype=np.int64):
    return np.array(values, dtype=dtype)


def test_hash_is_of_the_three_index_arrays():
    split = Split(index(0, 1), index(0, 1, 2), index(3), num_test=7)
    assert Split(index(0, 1, dtype=np.int32), index(0, 1, 2), index(3), num_test=7).hash == split.hash
    assert len(split.hash) == 16
    others = [
        Split(index(0, 2), index(0, 1, 2), index(3), 7),
        Split(index(0, 1), index(0, 1), index(3), 7),
        Split(index(0, 1), index(0, 1, 2), index(4), 7),
        Split(index(0, 1), index(0, 1, 2, 3), index(), 7),
    ]
    assert len({split.hash, *(other.hash for other in others)}) == 5


def test_summary_counts():
    split = split_of(num_labels=50, val_fraction=0.2)
    assert split.summary(LABELS, 6) == {
        "hash": split.hash, "labeled": 50, "unlabeled": 80, "val": 20, "test": 7,
        "labeled_per_class": [sum(LABELS[i] == c for i in split.labeled) for c in range(6)],
    }  # fmt: skip


@pytest.mark.parametrize("num_labels", [1, 4])
def test_fewer_labels_than_classes_are_refused(num_labels):
    with pytest.raises(ConfigError, match=r"dataset\.num_labels.*5 classes"):
        split_of(num_labels=num_labels)


@pytest.mark.parametrize(("num_labels", "val_fraction"), [(101, 0.0), (91, 0.1), (10**6, 0.0)])
def test_more_labels_than_the_pool_are_refused(num_labels, val_fraction):
    with pytest.raises(ConfigError, match=r"dataset\.num_labels"):
        split_of(num_labels=num_labels, val_fraction=val_fraction)


def test_split_file_round_trip(tmp_path):
    path = tmp_path / "deep" / "split.npz"
    split = split_of(num_labels=20, val_fraction=0.2, seed=4)
    write_split(split, path)
    again = split_of(seed=8, split_file=str(path))
    assert again.hash == split.hash
    for name in ("labeled", "unlabeled", "val"):
        assert getattr(again, name).tolist() == getattr(split, name).tolist()
    assert again.num_test == 7
    assert split_of(split_file=str(path), num_labels=20).hash == split.hash


def test_split_file_order_and_integer_type_do_not_matter(tmp_path):
    np.savez(tmp_path / "a.npz", labeled=index(7, 3, 5, dtype=np.uint8), val=index(9, 1, dtype=np.int32))
    split = split_of(split_file=str(tmp_path / "a.npz"))
    assert split.labeled.tolist() == [3, 5, 7]
    assert split.val.tolist() == [1, 9]
    assert split.unlabeled.tolist() == [i for i in range(100) if i not in (1, 9)]


def test_split_file_without_val_has_no_validation(tmp_path):
    np.savez(tmp_path / "a.npz", labeled=index(0, 50, 99))
    split = split_of(split_file=str(tmp_path / "a.npz"), val_fraction=0.2)
    assert len(split.val) == 0
    assert len(split.unlabeled) == 100


BAD_ARRAYS = {
    "duplicate": ({"labeled": index(1, 2, 2)}, "twice"),
    "above the range": ({"labeled": index(1, 100)}, "allowed 0 to 99"),
    "below the range": ({"labeled": index(-1, 3)}, "allowed 0 to 99"),
    "val above the range": ({"labeled": index(1), "val": index(100)}, "val.*allowed 0 to 99"),
    "labeled in val": ({"labeled": index(1, 2), "unlabeled": index(1), "val": index(2)}, "labeled and val"),
    "unlabeled in val": ({"labeled": index(1), "unlabeled": index(1, 2), "val": index(2)}, "unlabeled and val"),
    "float": ({"labeled": np.array([1.0, 2.0])}, "integers"),
    "bool mask": ({"labeled": np.ones(100, dtype=bool)}, "integers"),
    "two dimensions": ({"labeled": index(1, 2)[None]}, "integers"),
    "scalar": ({"labeled": np.int64(3)}, "integers"),
    "no labeled": ({"unlabeled": index(1, 2)}, "expected arrays"),
    "unknown key": ({"labeled": index(1), "test": index(2)}, "expected arrays.*test"),
    "empty labeled": ({"labeled": index()}, "labeled is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_split_file_with_wrong_content_is_refused(tmp_path, case):
    arrays, message = BAD_ARRAYS[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ConfigError, match=rf"dataset\.split_file.*{message}"):
        split_of(split_file=str(tmp_path / "bad.npz"))


def test_split_file_against_num_labels_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", labeled=index(1, 2, 3))
    with pytest.raises(ConfigError, match=r"dataset\.num_labels: 4.*3"):
        split_of(split_file=str(tmp_path / "a.npz"), num_labels=4)


def test_missing_split_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        split_of(split_file=str(tmp_path / "none.npz"))


def write_pickle(path):
    path.write_bytes(pickle.dumps({"labeled": [1, 2]}))


def write_object_array(path):
    np.savez(path, labeled=np.array([1, "two"], dtype=object))


def write_truncated(path):
    np.savez(path, labeled=np.arange(50))
    path.write_bytes(path.read_bytes()[:200])


def write_damaged(path):
    np.savez_compressed(path, labeled=np.random.default_rng(0).permutation(5000))
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)


def write_bare_array(path):
    with path.open("wb") as file:
        np.save(file, np.arange(50))


def write_zip_of_text(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("labeled.npy", "1 2 3")


UNREADABLE = {
    "pickle": write_pickle,
    "object array": write_object_array,
    "truncated": write_truncated,
    "damaged": write_damaged,
    "npy": write_bare_array,
    "zip of text": write_zip_of_text,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("labeled: [1, 2]"),
    "directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_split_file_is_refused(tmp_path, case):
    UNREADABLE[case](tmp_path / "bad.npz")
    with pytest.raises(DataError, match=r"dataset\.split_file"):
        split_of(split_file=str(tmp_path / "bad.npz"))


@pytest.mark.parametrize("case", ["truncated", "damaged", "npy", "zip of text", "empty", "directory"])
def test_config_with_an_unreadable_split_file_raises_no_bare_error(tmp_path, case):
    path = tmp_path / "bad.npz"
    UNREADABLE[case](path)
    nodes = {
        "method": {"name": "supervised"},
        "dataset": {"name": "digits", "split_file": str(path)},
        "student": "resnet8",
        "loss": {"ce": {"name": "ce"}},
        "schedule": {"steps": 1},
    }
    with pytest.raises(KdrunError, match=r"dataset\.split_file"):
        make_split(from_nodes(nodes), LABELS, 5, num_test=7)


def test_a_debug_run_has_no_more_labeled_images_than_training_images():
    every, debug = np.arange(100), DebugConfig(images=10)
    assert Split(every, every, every, 5).fewer(debug).num_train == 100
    assert Split(every[:3], every, every, 5).fewer(debug).num_train == 12  # 0, 10, ... and, with their labels, 1 and 2
    assert Split(every[:3], every, every, 5).num_train == 100
