"""A user's own image files: a flat folder of classes, nested ones, a list; what is drawn, what counts, what is said."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.cli.plot import main as plot
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.nodes import dump, from_record
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.data.drawing import same_content
from kdrun.data.load import load_dataset
from kdrun.data.overview import overview
from kdrun.data.sets import listed

RNG = np.random.default_rng(0)


def photo(path: Path, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path, **more)
    return path


def sideways(path: Path, number: int = 6) -> Path:
    exif = Image.Exif()
    exif[0x0112] = number
    return photo(path, exif=exif)


@pytest.fixture
def photos(tmp_path) -> Path:
    for name, count in (("cat", 20), ("dog", 10), ("emu", 3)):
        for k in range(count):
            photo(tmp_path / "photos" / name / f"{k:02d}.jpg")
    return tmp_path / "photos"


def config(path: Path, name: str = "imagefolder", **keys):
    return build(lookup("dataset", name, "").Config, {"name": name, "path": str(path), "size": 8, **keys}, "dataset")


def listing(path: Path, name: str = "imagefolder", **keys):
    return lookup("dataset", name, "").files(config(path, name, **keys))


def names(files) -> set[str]:
    return {"/".join(path.parts[-2:]) for path, _ in files}


# -------------------------------------------------------------------------------------------------------------- flat


def test_a_flat_folder_gives_a_test_part_of_each_class(photos):
    found = listing(photos, test_fraction=0.2)
    assert list(found.class_names) == ["cat", "dog", "emu"]
    assert np.bincount([label for _, label in found.test]).tolist() == [4, 2, 1]
    assert np.bincount([label for _, label in found.train]).tolist() == [16, 8, 2]
    assert not names(found.train) & names(found.test)


def test_the_draw_goes_by_test_seed_alone(photos, tmp_path):
    first = names(listing(photos, test_fraction=0.2).test)
    assert names(listing(photos, test_fraction=0.2, val_seed=7, split_seed=3).test) == first
    assert names(listing(photos, test_fraction=0.2, test_seed=1).test) != first
    shutil.copytree(photos, tmp_path / "elsewhere")
    assert names(listing(tmp_path / "elsewhere", test_fraction=0.2).test) == first


def test_more_photos_leave_most_of_the_draw_as_it_was(photos):
    first = names(listing(photos, test_fraction=0.5).test)
    for k in range(20, 24):
        photo(photos / "cat" / f"{k}.jpg")
    again = names(listing(photos, test_fraction=0.5).test)
    assert len(first & again) >= len(first) - 2


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_each_class_has_an_image_on_either_side(photos, fraction):
    found = listing(photos, test_fraction=fraction)
    assert {label for _, label in found.test} == {label for _, label in found.train} == {0, 1, 2}


def test_copies_never_stand_on_both_sides_and_are_named(photos):
    for k in range(8):
        shutil.copy(photos / "cat" / f"{k:02d}.jpg", photos / "cat" / f"copy{k}.jpg")
    shutil.copy(photos / "dog" / "03.jpg", photos / "emu" / "same.jpg")
    for seed in range(12):
        found = listing(photos, test_fraction=0.4, test_seed=seed)
        sides = [{path.read_bytes() for path, _ in files} for files in (found.train, found.test)]
        assert not sides[0] & sides[1]
        assert len(found.train) + len(found.test) == 33 + 9
    told = "\n".join(found.notes)
    assert f"{photos}: 9 images have the bytes of another one and stand on one side with it, e.g. cat/00.jpg = " in told
    assert "1 image stands in more than one class, e.g. dog/03.jpg = emu/same.jpg" in told


def test_a_class_of_copies_alone_stays_with_training(tmp_path):
    for name in ("cat", "dog"):
        first = photo(tmp_path / name / "0.jpg")
        for k in range(1, 4):
            shutil.copy(first, tmp_path / name / f"{k}.jpg")
    photo(tmp_path / "dog" / "9.jpg")
    found = listing(tmp_path, test_fraction=0.25)
    assert names(found.test) == {"dog/9.jpg"}


def test_only_files_of_one_size_are_read_for_copies(tmp_path, monkeypatch):
    paths = [tmp_path / f"{k}" for k in range(4)]
    for path, content in zip(paths, (b"a", b"bb", b"cc", b"bb"), strict=True):
        path.write_bytes(content)
    assert same_content(paths) == [[1, 3]]
    monkeypatch.setattr("kdrun.data.drawing._known", lambda path: pytest.fail(f"{path} was read"))
    assert same_content(paths[:2]) == []


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({}, "no folder test or val; expected .*/test/<class>/<image>, or give dataset.test_fraction=0.2"),
        ({"test_fraction": 0.2, "classes": ["cta"]}, "dataset.classes: .* has no cta; nearest: cat"),
    ],
)
def test_a_flat_folder_is_told_what_it_lacks(photos, keys, line):
    with pytest.raises(DataError, match=line):
        listing(photos, **keys)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_an_impossible_share_is_refused(photos, fraction):
    with pytest.raises(ConfigError, match=r"dataset\.test_fraction"):
        config(photos, test_fraction=float(fraction))


def test_classes_may_be_called_train_and_test(tmp_path):
    for name in ("train", "test", "bus"):
        for k in range(5):
            photo(tmp_path / name / f"{k}.jpg")
    assert list(listing(tmp_path, test_fraction=0.2).class_names) == ["bus", "test", "train"]


def test_a_tree_that_has_a_test_part_needs_no_draw(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "tree" / "train")
    shutil.copytree(photos, tmp_path / "tree" / "test")
    assert len(listing(tmp_path / "tree").test) == 33
    with pytest.raises(DataError, match=r"test_fraction: .*test has the test images"):
        listing(tmp_path / "tree", test_fraction=0.2)
    shutil.rmtree(tmp_path / "tree" / "test")
    assert len(listing(tmp_path / "tree", test_fraction=0.2).test) == 7  # of train/


def test_a_folder_val_is_official_validation_or_said_to_be_unused(photos, tmp_path):
    for part in ("train", "val", "test"):
        shutil.copytree(photos, tmp_path / "tree" / part)
    found = listing(tmp_path / "tree")
    assert not found.val
    assert "val is not used: dataset.val=official validates on it" in found.notes[0]
    found = listing(tmp_path / "tree", val="official")
    assert len(found.val) == len(found.train) == len(found.test) == 33
    arrays = load_dataset(config(tmp_path / "tree", val="official"), tmp_path)
    assert arrays.val.tolist() == list(range(33, 66))


def test_nested_folders_by_choice(tmp_path):
    for name in ("pets/cat", "pets/dog", "birds/emu", "birds"):
        for k in range(5):
            photo(tmp_path / name / f"{k}.jpg")
    assert list(listing(tmp_path, test_fraction=0.2).class_names) == ["birds", "pets"]
    found = listing(tmp_path, test_fraction=0.2, nested=True)
    assert list(found.class_names) == ["birds", "birds/emu", "pets/cat", "pets/dog"]
    assert list(listing(tmp_path, test_fraction=0.2, nested=True, classes=["pets/cat", "birds/emu"]).class_names) == [
        "birds/emu", "pets/cat",
    ]  # fmt: skip


def test_what_is_passed_over_stands_in_the_notes(photos):
    photo(photos / "loose.jpg")
    (photos / "cat" / "notes.txt").write_text("x")
    (line,) = listing(photos, test_fraction=0.2).notes
    assert "2 files are no images or in no class folder and were passed over" in line
    assert "cat/notes.txt" in line
    assert "loose.jpg" in line


# -------------------------------------------------------------------------------------------------------------- lists


def write_list(path: Path, rows, head=("path", "label", "split"), delimiter=",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([head, *rows])
    return path


def rows_of(photos: Path) -> list[list[str]]:
    return [[f"photos/{path.parent.name}/{path.name}", path.parent.name] for path in sorted(photos.rglob("*.jpg"))]


def test_a_list_with_splits(photos):
    rows = [[*row, ("train", "Val", "test", "train")[k % 4]] for k, row in enumerate(rows_of(photos))]
    path = write_list(photos.parent / "labels.csv", rows)
    found = listing(path, "listed")
    assert (len(found.train), len(found.val), len(found.test)) == (17, 8, 8)
    assert list(found.class_names) == ["cat", "dog", "emu"]
    assert load_dataset(config(path, "listed", val="official"), photos.parent).val.tolist() == list(range(17, 25))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_list_without_splits_is_drawn_from(photos, delimiter):
    path = write_list(photos.parent / "labels.csv", rows_of(photos), ("path", "label"), delimiter)
    found = listing(path, "listed", test_fraction=0.2)
    assert np.bincount([label for _, label in found.test]).tolist() == [4, 2, 1]
    with pytest.raises(DataError, match=r"names no test images.*dataset\.test_fraction=0\.2"):
        listing(path, "listed")


def test_a_list_as_parquet(photos):
    import pyarrow as pa
    from pyarrow import parquet

    rows = rows_of(photos)
    table = pa.table({"file": [row[0] for row in rows], "y": [len(row[1]) + k % 2 for k, row in enumerate(rows)]})
    parquet.write_table(table, photos.parent / "labels.parquet")
    found = listing(photos.parent / "labels.parquet", "listed", image="file", label="y", test_fraction=0.2)
    assert list(found.class_names) == ["3", "4"]


def test_without_pyarrow_the_extra_is_named(photos, monkeypatch):
    import sys

    (photos.parent / "labels.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'kdrun\[hf\]'"):
        listing(photos.parent / "labels.parquet", "listed")


def test_labels_that_are_numbers_stand_in_their_order(photos):
    assert listed.class_names(["10", "9", "2", "9"]) == ["2", "9", "10"]
    assert listed.class_names(["10", "9", "b"]) == ["10", "9", "b"]


def test_a_list_may_lie_apart_from_its_images(photos, tmp_path):
    (tmp_path / "lists").mkdir()
    path = write_list(tmp_path / "lists" / "a.csv", rows_of(photos), ("path", "label"))
    assert len(listing(path, "listed", root=str(tmp_path), test_fraction=0.2).paths) == 33
    absolute = [[str(tmp_path / name), label] for name, label in rows_of(photos)]
    assert len(listing(write_list(path, absolute, ("path", "label")), "listed", test_fraction=0.2).paths) == 33


@pytest.mark.parametrize(
    ("rows", "head", "line"),
    [
        ([["photos/cat/00.jpg", "cat", "tset"]], ("path", "label", "split"), "row 1 says 'tset'; nearest: test"),
        ([["photos/cat/gone.jpg", "cat", "train"]], ("path", "label", "split"), "missing image .*gone.jpg"),
        ([["photos/cat/00.jpg", "cat"]], ("file", "label"), r"dataset\.image: .*no column 'path'"),
        ([["photos/cat/00.jpg", "cat"]], ("path", "labels"), r"dataset\.label: .*no column 'label'; nearest: labels"),
        ([["photos/cat/00.jpg", ""]], ("path", "label"), "column label: row 1 is empty"),
        ([["photos/cat/00.jpg"]], ("path", "label"), "row 1 has 1 cells"),
        ([["photos/cat/00.jpg", "cat"], ["photos/cat/00.jpg", "dog"]], ("path", "label"), "rows 1 and 2 name the same file"),
        ([], ("path", "label"), "no rows"),
        ([["photos/cat/00.jpg", "cat", "test"]], ("path", "label", "split"), "no row says train"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_said(photos, rows, head, line):
    path = write_list(photos.parent / "labels.csv", rows, head)
    with pytest.raises(DataError, match=line):
        listing(path, "listed", test_fraction=0.2 if "split" not in head else None)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"PAR1"])
def test_a_list_that_is_none_is_refused(tmp_path, content):
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"dataset\.\w+: .*{name}"):
            listing(tmp_path / name, "listed", test_fraction=0.2)


# ---------------------------------------------------------------------------------------------------------------- keys

WORDS = ["method=supervised", "loss=ce", "teacher=none", "dataset.size=8"]


def key(*words: str) -> str:
    with Composer() as composer:
        return run_key(composer.typed([*WORDS, *words]))


@pytest.fixture
def tree(tmp_path) -> Path:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for k in range(3):
                photo(tmp_path / "tree" / part / name / f"{k}.jpg")
    return tmp_path / "tree"


def test_only_runs_with_turned_files_have_another_key(tree):
    words = ["dataset=imagefolder", f"dataset.path={tree}"]
    plain = key(*words)
    assert key(*words, "dataset.exif=stored") == plain  # the same pixels
    sideways(tree / "train" / "cat" / "0.jpg")
    upright, stored = key(*words), key(*words, "dataset.exif=stored")
    assert upright != stored
    sideways_again = key(*words)
    assert sideways_again == upright
    size = (tree / "train" / "cat" / "0.jpg").stat().st_size
    data = (tree / "train" / "cat" / "0.jpg").read_bytes()
    (tree / "train" / "cat" / "0.jpg").write_bytes(
        data.replace(b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x03")
    )
    assert (tree / "train" / "cat" / "0.jpg").stat().st_size == size
    assert key(*words, "dataset.exif=stored") == stored  # names and sizes are as they were


def test_without_turned_files_the_key_is_what_it_always_was(tree, monkeypatch):
    """As before there was anything beside the configuration."""
    words = ["dataset=imagefolder", f"dataset.path={tree}"]
    with_identity = key(*words)
    monkeypatch.delattr(lookup("dataset", "imagefolder", ""), "identity")
    assert key(*words) == with_identity


def test_a_turned_file_of_the_unlabeled_pool_counts_too(tree, tmp_path):
    photo(tmp_path / "pool" / "a.jpg")
    words = ["dataset=imagefolder", f"dataset.path={tree}", f"dataset.unlabeled={tmp_path / 'pool'}", "method=fixmatch"]
    plain = key(*words)
    assert key(*words, "dataset.exif=stored") == plain
    sideways(tmp_path / "pool" / "a.jpg")
    assert key(*words) != key(*words, "dataset.exif=stored")


def test_published_datasets_are_stored_unless_asked(tmp_path):
    assert key("dataset=food101") == key("dataset=food101", "dataset.exif=stored")
    assert key("dataset=food101") != key("dataset=food101", "dataset.exif=upright")
    assert key("dataset=food101") != key("dataset=food101", "dataset.color=srgb")


def test_the_draw_and_the_classes_count(photos):
    words = ["dataset=imagefolder", f"dataset.path={photos}", "dataset.test_fraction=0.2"]
    changed = ["dataset.test_seed=1", "dataset.test_fraction=0.3", "dataset.nested=true", "dataset.color=srgb"]
    assert len({key(*words), *(key(*words, word) for word in changed)}) == 5


def test_of_a_list_the_images_count_and_not_their_place(photos, tmp_path):
    path = write_list(tmp_path / "labels.csv", rows_of(photos), ("path", "label"))
    words = ["dataset=listed", "dataset.test_fraction=0.2"]
    first = key(*words, f"dataset.path={path}")
    shutil.copytree(photos, tmp_path / "elsewhere" / "photos")
    shutil.copy(path, tmp_path / "elsewhere" / "labels.csv")
    assert key(*words, f"dataset.path={tmp_path / 'elsewhere' / 'labels.csv'}") == first
    assert key(*words, f"dataset.path={path}", f"dataset.root={tmp_path / 'elsewhere'}") == first
    photo(photos / "cat" / "00.jpg", quality=30)
    assert key(*words, f"dataset.path={path}") != first


def test_an_older_record_is_read_as_its_run_read_files(tree):
    with Composer() as composer:
        config = composer.typed([*WORDS, "dataset=imagefolder", f"dataset.path={tree}"])
    node = dump(config)
    assert from_record(node).dataset.exif == "upright"
    del node["dataset"]["exif"]
    assert from_record(node).dataset.exif == "stored"


# ------------------------------------------------------------------------------------------------------------- overview


def test_what_one_trains_on_is_told(photos, tmp_path):
    photo(photos / "cat" / "x.png")
    asked = config(photos, test_fraction=0.2)
    lines, warnings = overview(asked, load_dataset(asked, tmp_path), tmp_path)
    assert lines[0].startswith("27 training images, 7 test images; 3 classes, the smallest emu (2 training images)")
    assert lines[1].startswith("files: 33 .jpg, 1 .png; of 34 of them: JPEG, PNG, from 16x12 to 16x12 pixels")
    assert lines[2] == "copies: 0 of 34 files have the bytes of another one"
    assert warnings == []


def test_training_images_in_the_test_are_warned_of(tree, tmp_path):
    shutil.copy(tree / "train" / "cat" / "0.jpg", tree / "test" / "dog" / "0.jpg")
    asked = config(tree)
    lines, (warning,) = overview(asked, load_dataset(asked, tmp_path), tmp_path)
    assert lines[2] == "copies: 1 of 12 files have the bytes of another one"
    assert "1 test image has the bytes of a training image, e.g. test/dog/0.jpg = train/cat/0.jpg" in warning


def test_many_bytes_are_not_read_for_copies(tree, tmp_path, monkeypatch):
    shutil.copy(tree / "train" / "cat" / "0.jpg", tree / "test" / "dog" / "0.jpg")
    monkeypatch.setattr("kdrun.data.overview.MOST_READ", 10)
    asked = config(tree)
    assert overview(asked, load_dataset(asked, tmp_path), tmp_path)[0][2].startswith("copies: not looked for")


def test_an_overview_of_arrays(tmp_path):
    asked = build(lookup("dataset", "digits", "").Config, {"name": "digits"}, "dataset")
    lines, _ = overview(asked, load_dataset(asked, tmp_path), tmp_path)
    assert lines[0].endswith("8x8 pixels of 1 channels")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_contact_sheet(photos, tmp_path, monkeypatch, split):
    monkeypatch.chdir(tmp_path)
    (photos / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    words = ["images", "dataset=imagefolder", f"dataset.path={photos}", "dataset.test_fraction=0.2", "dataset.size=16"]
    told = plot([*words, f"split={split}", "out=sheet.png"])
    assert "3 classes, the smallest emu" in told
    assert told.endswith("wrote sheet.png")
    assert Image.open("sheet.png").size[0] > 500
    assert plot(["images", "dataset=digits", "classes=3", "out=digits.svg"]).endswith("wrote digits.svg")


def test_the_first_look_names_each_photo_that_cannot_be_read_and_what_to_type(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdrun.results.plots.images.draw", lambda *_: None)
    broken = [photos / "cat" / f"{k:02d}.jpg" for k in (1, 6, 13)]
    for path in broken:  # of a class of 20 ten are drawn
        path.write_bytes(path.read_bytes()[:200])
    words = ["images", "dataset=imagefolder", f"dataset.path={photos}", "dataset.test_fraction=0.2", "dataset.size=16"]
    told = plot(words)
    assert [told.count(str(path)) for path in broken] == [1, 1, 1]
    assert "dataset.skip_unreadable=true goes on without these 3 of 33 images" in told
    again = plot([*words, "dataset.skip_unreadable=true"])
    assert "3 of 33 images are unreadable and were left out" in again
    assert "goes on without" not in again
    with pytest.raises(DataError, match="skip_unreadable=true goes on without these 3"):  # before anything is trained
        load_dataset(config(photos, test_fraction=0.2, size=16, pack={"size": 16}), Path("outputs"), pixels=False)


def test_the_first_look_is_at_the_unlabeled_photos_too(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdrun.results.plots.images.draw", lambda *_: None)
    photo(tmp_path / "new" / "0.jpg")
    (tmp_path / "new" / "1.jpg").write_bytes(b"")
    words = [f"dataset.path={photos}", "dataset.test_fraction=0.2", "dataset.size=16", "dataset.unlabeled=new"]
    told = plot(["images", "dataset=imagefolder", *words])
    assert "training images, and 1 without labels, " in told
    assert "warning: dataset.unlabeled: unreadable image new/1.jpg (not an image); dataset.skip_unreadable=true" in told


def test_a_look_at_streamed_photos_packs_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdrun.results.plots.images.draw", lambda *_: None)
    for path in (photos / "emu").iterdir():  # two of them for training, which are drawn
        path.write_bytes(b"")
    words = [f"dataset.path={photos}", "dataset.test_fraction=0.2", "dataset.size=16", "dataset.stream=true"]
    assert plot(["images", "dataset=imagefolder", *words]).count(f"warning: unreadable image {photos / 'emu'}") == 2
    assert not Path("outputs", "artifacts", "packed").exists()


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="dataset: missing"):
        plot(["images", "out=a.png"])
    with pytest.raises(ConfigError, match="image: not a picture; nearest: images"):
        plot(["image"])
