"""Image files packed once: resumed after a kill, checked, shared, and read without being held in memory."""

import ctypes
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdrun.config.views import WeakConfig
from kdrun.core import contents
from kdrun.core.contents import Contents
from kdrun.core.errors import DataError
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.data import packed
from kdrun.data.arrays import Arrays
from kdrun.data.images import decode
from kdrun.data.load import load_dataset
from kdrun.data.loader import make_loader
from kdrun.data.packed import Pack
from kdrun.data.residency import place
from kdrun.data.splits import Split
from kdrun.data.views.recipes import Weak
from kdrun.training.evaluator import Evaluator
from tests.damage import DAMAGE, truncated
from tests.processes import Forked
from tests.unit.test_published import write_image, write_tree

SIZE = 8


def load(root: Path, outputs: Path, pixels=True, **keys):
    keys = {"name": "imagefolder", "path": str(root), "size": SIZE, "pack": {"size": SIZE}, **keys}
    return load_dataset(build(lookup("dataset", "imagefolder", "").Config, keys, "dataset"), outputs, pixels)


def pack_of(folder: Path, outputs: Path, crop="center") -> Pack:
    return Pack(Contents(sorted(folder.rglob("*.png")), folder, outputs), SIZE, crop, outputs, "dataset.path")


def folders(outputs: Path) -> list[Path]:
    return sorted((outputs / "artifacts" / "packed").iterdir())


@pytest.fixture
def tree(tmp_path):
    write_tree(tmp_path / "data")
    return tmp_path / "data"


def test_packed_images_are_the_decoded_ones_and_a_mapped_file(tree, outputs):
    plain, got = load(tree, outputs, pack={}), load(tree, outputs)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(got, name), getattr(plain, name))
    assert isinstance(got.train_images, np.memmap)
    assert isinstance(got.test_images, np.memmap)
    assert got.class_names == plain.class_names
    assert [path.suffix for path in folders(outputs)] == [""]  # no lock is left


def test_square_keeps_the_whole_image(tree, outputs):
    square, center = (pack_of(tree, outputs, crop).build().images for crop in ("square", "center"))
    expected, _ = decode(sorted(tree.rglob("*.png")), SIZE, "square")
    np.testing.assert_array_equal(square, expected)
    assert (square != center).any()
    assert len(folders(outputs)) == 2


def test_shapes_and_labels_are_known_before_anything_is_packed(tree, outputs):
    outline = load(tree, outputs, pixels=False)
    assert outline.train_images.shape == (6, SIZE, SIZE, 3)
    assert not outputs.exists()
    whole = load(tree, outputs)
    np.testing.assert_array_equal(outline.train_labels, whole.train_labels)


def test_packed_once_for_all_copies_and_anew_when_a_file_changes(tree, outputs, monkeypatch, tmp_path):
    first = pack_of(tree, outputs)
    first.build()
    decoded, hashed, real = [], [], contents._file_digest
    monkeypatch.setattr(packed, "decoded", lambda paths, *_: decoded.append(len(paths)) or iter(()))
    monkeypatch.setattr(contents, "_file_digest", lambda path: hashed.append(path) or real(path))
    pack_of(tree, outputs).build()
    assert not hashed
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy, copy_function=shutil.copyfile)  # new times
    assert pack_of(copy, outputs).open() is None
    assert len(pack_of(copy, outputs).build().images) == len(hashed) == 12
    assert not decoded
    path = tree / "train" / "cat" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content[::-1])  # as long as before
    os.utime(path, ns=(1, 1))
    changed = pack_of(tree, outputs)
    assert changed.open() is None
    assert changed._artifact(changed.contents.read()) != first.artifact


def build_and_die(tree, outputs):
    """Killed in the middle of a write, without a chance to tidy up."""
    real, packed.SAVE_EVERY = packed.decoded, -1.0

    def dying(*arguments):
        for count, image in enumerate(real(*arguments)):
            if count == 5:
                with next(outputs.glob("artifacts/packed/*.partial/images.bin")).open("ab") as file:
                    file.write(b"torn")
                os.kill(os.getpid(), signal.SIGKILL)
            yield image

    packed.decoded = dying
    pack_of(tree, outputs).build()


def test_a_killed_one_is_resumed_and_its_lock_taken_over(tree, outputs, monkeypatch, caplog):
    (tree / "train" / "cat" / "2.png").write_bytes(b"")
    killed = multiprocessing.get_context("fork").Process(target=build_and_die, args=(tree, outputs))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (partial,) = [path for path in folders(outputs) if path.suffix == ".partial"]
    assert json.loads((partial / "progress.json").read_text())["next"] == 5
    real, asked = packed.decoded, []
    monkeypatch.setattr(packed, "decoded", lambda paths, *rest: asked.append(len(paths)) or real(paths, *rest))
    with caplog.at_level(logging.INFO):
        got = pack_of(tree, outputs).build()
    assert asked == [12 - 5]
    assert "from image 5 on" in caplog.text
    assert "took over" in caplog.text
    expected, unreadable = decode(sorted(tree.rglob("*.png")), SIZE)
    np.testing.assert_array_equal(got.images, expected)
    assert got.unreadable == unreadable
    assert [path.suffix for path in folders(outputs)] == [""]


def build_slowly(tree, outputs, pause):
    real = packed.decoded

    def slow(*arguments):
        for image in real(*arguments):
            pause.wait(0.05)
            yield image

    packed.decoded = slow
    pack_of(tree, outputs).build()


def test_another_process_waits(tree, outputs, caplog):
    context = multiprocessing.get_context("fork")
    other = context.Process(target=build_slowly, args=(tree, outputs, context.Event()))
    other.start()
    while not list(outputs.glob("artifacts/packed/*.partial/images.bin")) and other.is_alive():
        pass
    with caplog.at_level(logging.INFO):
        assert len(pack_of(tree, outputs).build().images) == 12
    other.join()
    assert other.exitcode == 0
    assert "waiting for" in caplog.text
    assert "packing 12" not in caplog.text


@pytest.mark.parametrize("file", ["images.bin", "spec.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_said_and_packed_anew(tree, outputs, caplog, damage, file):
    pack = pack_of(tree, outputs)
    expected = np.array(pack.build().images)
    damage(pack.artifact.folder / file)
    np.testing.assert_array_equal(pack_of(tree, outputs).build().images, expected)
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"{pack.artifact.folder}: damaged (")
    assert line.endswith("; it is built anew")
    assert len(folders(outputs)) == 1


def test_what_is_not_whole_is_not_opened(tree, outputs):
    pack = pack_of(tree, outputs)
    pack.build()
    truncated(pack.artifact.folder / "images.bin")
    assert pack.open() is None


@pytest.mark.parametrize("file", ["images.bin", "progress.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_a_killed_process_left_damaged_is_packed_from_the_first_image(tree, outputs, damage, file):
    killed = multiprocessing.get_context("fork").Process(target=build_and_die, args=(tree, outputs))
    killed.start()
    killed.join()
    (partial,) = [path for path in folders(outputs) if path.suffix == ".partial"]
    content = (partial / "images.bin").read_bytes()[: 5 * SIZE * SIZE * 3]  # not the row that was torn
    (partial / "images.bin").write_bytes(content)
    damage(partial / file)
    expected, _ = decode(sorted(tree.rglob("*.png")), SIZE)
    np.testing.assert_array_equal(pack_of(tree, outputs).build().images, expected)
    assert [path.suffix for path in folders(outputs)] == [""]


def test_a_full_disk(tree, outputs):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            DataError, match=r"dataset\.pack: .*\.partial: File too large after \d+ of 12 .*; removed it"
        ):
            pack_of(tree, outputs).build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not folders(outputs)
    assert len(pack_of(tree, outputs).build().images) == 12


def test_what_cannot_fit_is_not_begun(tree, outputs, monkeypatch):
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 0, 1000))
    with pytest.raises(DataError, match=r"dataset\.pack: 0\.0 MB do not fit into .*, 0\.0 MB are free"):
        pack_of(tree, outputs).build()
    assert not folders(outputs)


@pytest.mark.parametrize("pack", [{}, {"size": SIZE}], ids=["memory", "packed"])
def test_unreadable_files_are_listed_or_left_out_and_counted(tree, outputs, pack):
    cat = tree / "train" / "cat"
    whole = (cat / "0.png").read_bytes()
    for name, content in (("1.png", b""), ("2.png", b"<html>"), ("3.png", whole[:60])):
        (cat / name).write_bytes(content)
    (tree / "val" / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(DataError) as refused:
        load(tree, outputs, pack=pack)
    lines = refused.value.lines
    assert [Path(line.split()[3]).relative_to(tree).as_posix() for line in lines] == [
        "train/cat/1.png", "train/cat/2.png", "train/cat/3.png", "val/dog/0.png",
    ]  # fmt: skip
    assert lines[-1].endswith("; dataset.skip_unreadable=true goes on without these 4 of 13 images")
    got = load(tree, outputs, pack=pack, skip_unreadable=True)
    assert got.train_labels.tolist() == [0, 1, 1, 1]
    assert got.test_labels.tolist() == [0, 0, 0, 1, 1]
    assert got.train_images.shape == (4, SIZE, SIZE, 3)
    np.testing.assert_array_equal(got.train_images[0], decode([cat / "0.png"], SIZE)[0][0])
    assert got.warnings[0].startswith("4 of 13 images are unreadable and were left out, e.g. ")


@pytest.mark.parametrize("pack", [{}, {"size": SIZE}], ids=["memory", "packed"])
def test_an_unlabeled_folder_beside_the_labeled_one(tree, outputs, tmp_path, pack):
    for i in range(4):
        write_image(tmp_path / "pool" / f"{i}.png")
    got = load(tree, outputs, pack=pack, unlabeled=str(tmp_path / "pool"))
    assert got.num_unlabeled == 4
    assert got.train_labels.tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1]
    assert len(got.test_images) == 6
    (tmp_path / "pool" / "1.png").write_bytes(b"")
    os.utime(tmp_path / "pool", ns=(1, 1))  # the folder's hash is remembered
    with pytest.raises(DataError, match=r"^dataset\.unlabeled: unreadable image .*pool/1\.png"):
        load(tree, outputs, pack=pack, unlabeled=str(tmp_path / "pool"))


def arrays_of(images: np.ndarray) -> Arrays:
    labels = np.arange(len(images)) % 2
    return Arrays(images, labels, images[:5], labels[:5], ("a", "b"), (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("resident", [True, False, "auto"])
def test_batches_and_evaluations_are_the_same_wherever_the_images_are(tree, outputs, resident):
    mapped = load(tree, outputs)
    images, test = place(mapped, torch.device("cpu"), resident)
    expected = torch.from_numpy(np.array(mapped.train_images))
    recipes = {"weak": Weak.of(WeakConfig(pad=2), (SIZE, SIZE), True)}
    split = Split(np.arange(6), np.arange(6), np.arange(0), 6)
    both = [
        make_loader({"labeled": ("weak",)}, mapped, split, where, {"labeled": 4}, recipes, seed=3, total_steps=5)
        for where in (images, expected)
    ]
    for step in range(5):
        got, want = (loader.batch(step)["labeled"] for loader in both)
        assert torch.equal(got.views["weak"].pixels, want.views["weak"].pixels)
        assert torch.equal(got.target, want.target)
    for loader in both:
        loader.close()
    at = torch.arange(6)
    (logits,) = Evaluator({"test": (test, at, at)}, 4).logits(lambda v: {"net": v.pixels.float().mean((2, 3))}).values()
    torch.testing.assert_close(logits, torch.from_numpy(mapped.test_images.astype(np.float32).mean((1, 2))))


M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def writable_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmData"))) << 10


def shown_in_little_memory(folder: Path) -> int:
    # Large blocks are mapped one by one and given back at once: whether those that are free are broken up for small ones,
    # and so cannot be used again, is the allocator's affair.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)
    side, size = 128, 128 << 20
    count = size // (side * side * 3)
    with (folder / "images.bin").open("wb") as file:
        for k in range(count):
            file.write(bytes([k % 256]) * (side * side * 3))
    arrays = arrays_of(np.memmap(folder / "images.bin", np.uint8, "r", shape=(count, side, side, 3)))
    train, test = place(arrays, torch.device("cpu"), "auto")
    most = []

    def show_all() -> None:
        split = Split(np.arange(count), np.arange(count), np.arange(0), 5)
        recipes = {"weak": Weak.of(WeakConfig(pad=0), (side, side), True)}
        loader = make_loader({"labeled": ("weak",)}, arrays, split, train, {"labeled": 16}, recipes, seed=0)
        for step in range(count // 16):
            view = loader.batch(step)["labeled"].views["weak"]
            assert torch.equal(view.pixels[:, 0, 0, 0], (view.index % 256).to(torch.uint8))
            most.append(writable_memory())

        def predict(view):
            most.append(writable_memory())
            return {"net": view.pixels[:, :2, 0, 0].float()}

        at = torch.arange(count)
        Evaluator({"train": (train, at, at % 2)}, 16).logits(predict)

    show_all()  # what torch and the allocator set aside at first use is not the images'
    before = writable_memory()
    most.clear()
    show_all()
    assert max(most) - before < size // 4, (max(most) - before, size)
    assert len(test) == 5
    held = np.array(arrays.train_images)
    assert writable_memory() - before > 0.9 * held.nbytes  # what is measured would tell
    return 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells a process's memory on Linux only")
def test_mapped_images_need_no_memory_of_their_size(tmp_path):
    process = Forked(shown_in_little_memory, tmp_path)  # where no other test's memory counts
    assert process.wait(60) == 0, process.text
