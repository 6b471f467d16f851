"""What a hostile disk, a lost network or a wrong file gives: one line from the command line, and nothing is written."""

import os
import pickle
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdrun.cli import carrying
from kdrun.config.model import ModelConfig
from kdrun.data import load as dataset
from kdrun.models.network import build_network
from kdrun.runs.record import find_records
from tests.unit.test_published import flatten, write_cifar10, write_food101, write_image, write_svhn, write_tree

pytestmark = pytest.mark.slow


PAGE = b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>\n"
RUN = ["tracker=none", "schedule.steps=2", "schedule.batch_size=4", "execution.threads=1"]
SUPERVISED = ["method=supervised", "loss=ce", "teacher=none"]


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # nobody has told it that there is none


def everything(root: Path) -> dict[str, object]:
    """All that lies below a folder, and what it holds."""
    return {
        str(path): path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


# ------------------------------------------------------------------------------------- files, good but for one thing


def cifar(root, name=None, content=None, md5=False):
    write_cifar10(root)
    if name is not None:
        path = root / "cifar-10-batches-py" / name
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    return [*SUPERVISED, "dataset=cifar10", f"dataset.root={root}", f"dataset.verify_md5={md5}"]


def cifar100(root, content):
    (root / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (root / "cifar-100-python" / name).write_bytes(content)
    return [*SUPERVISED, "dataset=cifar100", f"dataset.root={root}", "dataset.verify_md5=false"]


def svhn(root, content=None):
    write_svhn(root)
    if content is not None:
        (root / "test_32x32.mat").write_bytes(content)
    return [*SUPERVISED, "dataset=svhn", f"dataset.root={root}", f"dataset.verify_md5={content is None}"]


def food(root, name, content):
    write_food101(root)
    (root / "food-101" / name).write_bytes(content)
    return [*SUPERVISED, "dataset=food101", f"dataset.root={root}", "dataset.size=8"]


def absent(name, *more):
    return lambda root: [*SUPERVISED, f"dataset={name}", f"dataset.root={root / 'data'}", *more]


def page_as_archive(root):
    (root / "data").mkdir()
    (root / "data" / "cifar-10-python.tar.gz").write_bytes(PAGE)
    return absent("cifar10")(root)


def folder(spoil, *more):
    def make(root):
        write_tree(root)
        spoil(root)
        return [*SUPERVISED, "dataset=imagefolder", f"dataset.path={root}", "dataset.size=8", *more]

    return make


def npz(content=None, **changes):
    def make(root):
        arrays = {
            "train_images": np.zeros((12, 8, 8, 3), np.uint8), "train_labels": np.arange(12) % 3,
            "test_images": np.zeros((6, 8, 8, 3), np.uint8), "test_labels": np.arange(6) % 3,
        }  # fmt: skip
        np.savez(root / "data.npz", **{**arrays, **changes})
        if content is not None:
            (root / "data.npz").write_bytes(content)
        return [*SUPERVISED, "dataset=npz", f"dataset.path={root / 'data.npz'}"]

    return make


def weights(classes=10):
    model = ModelConfig(name="resnet8", args={"width": 4})
    network = build_network(model, num_classes=classes, in_chans=1, mean=[0.3], std=[0.2], seed=0)
    return dict(network.net.state_dict())


def teacher(write, *more):
    def make(root):
        write(root / "t.pt")
        model = ["student@teacher.model=resnet8", "teacher.model.args.width=4"]
        return ["dataset.num_labels=20", "teacher=file", *model, f"teacher.path={root / 't.pt'}", *more]

    return make


def saved(*more, classes=10, without=None, prefix="", **extra):
    state = {prefix + name: value for name, value in weights(classes).items() if name != without}
    return teacher(lambda path: torch.save({**state, **extra}, path), *more)


def cut(save, length):
    def write(path):
        save(path)
        path.write_bytes(path.read_bytes()[:length])

    return teacher(write)


def published(write, *more):
    def make(root):
        write(root / "w.pt")
        return [
            "student=timm",
            "student.name=test_resnet",
            "student.pretrained=true",
            f"student.file={root / 'w.pt'}",
            *more,
        ]

    return make


def given(*arguments):
    return lambda root: list(arguments)


BATCH = {"data": np.zeros((5, 3072), np.uint8), "labels": [0] * 5}
TEN = "data/cifar-10-batches-py/data_batch_1 is not there"

# what is wrong -> how it is made, and how the line begins, with {root} for the folder of the files
REFUSED = {
    "cifar10 absent": (absent("cifar10"), "dataset.root: {root}/" + TEN + " and cannot be downloaded (no network); put the content of cifar-10-python.tar.gz below {root}/data"),
    "cifar10 absent, download forbidden": (absent("cifar10", "dataset.download=false"), "dataset.root: {root}/" + TEN + "; put the content of cifar-10-python.tar.gz below {root}/data, or allow dataset.download"),
    "cifar100 absent": (absent("cifar100"), "dataset.root: {root}/data/cifar-100-python/train is not there and cannot be downloaded (no network); put"),
    "svhn absent": (absent("svhn"), "dataset.root: {root}/data/train_32x32.mat is not there and cannot be downloaded (no network); put train_32x32.mat below {root}/data"),
    "food101 absent": (absent("food101"), "dataset.root: {root}/data/food-101/meta/train.json is not there and cannot be downloaded (no network); put the content of food-101.tar.gz"),
    "a page as the archive": (page_as_archive, "dataset.root: {root}/" + TEN),
    "cifar10 another md5": (lambda r: cifar(r, md5=True), "dataset.root: {root}/cifar-10-batches-py/data_batch_1 is damaged or not the published file (md5 differs)"),
    "cifar10 truncated": (lambda r: cifar(r, "data_batch_3", pickle.dumps(BATCH)[:1000]), "dataset.root: {root}/cifar-10-batches-py/data_batch_3: not a readable CIFAR file (pickle data was truncated)"),
    "cifar10 empty": (lambda r: cifar(r, "data_batch_3", b""), "dataset.root: {root}/cifar-10-batches-py/data_batch_3: not a readable CIFAR file"),
    "cifar10 a page": (lambda r: cifar(r, "test_batch", PAGE), "dataset.root: {root}/cifar-10-batches-py/test_batch: not a readable CIFAR file"),
    "cifar10 garbage": (lambda r: cifar(r, "batches.meta", bytes(range(256))), "dataset.root: {root}/cifar-10-batches-py/batches.meta: not a readable CIFAR file"),
    "cifar10 another shape": (lambda r: cifar(r, "data_batch_3", {**BATCH, "data": np.zeros((5, 9), np.uint8)}), "dataset.root: {root}/cifar-10-batches-py/data_batch_3: data is uint8 (5, 9), expected uint8 (N, 3072)"),
    "cifar10 a label of another type": (lambda r: cifar(r, "data_batch_3", {**BATCH, "labels": ["cat"] * 5}), "dataset.root: {root}/cifar-10-batches-py/data_batch_3: labels: 'cat', allowed 0 to 9"),
    "cifar10 a label too high": (lambda r: cifar(r, "data_batch_3", {**BATCH, "labels": [10] * 5}), "dataset.root: {root}/cifar-10-batches-py/data_batch_3: labels: 10, allowed 0 to 9"),
    "cifar10 wants to run code": (lambda r: cifar(r, "data_batch_3", {"data": Attack()}), "dataset.root: {root}/cifar-10-batches-py/data_batch_3: not a readable CIFAR file (it asks for posix.system)"),
    "cifar100 a page": (lambda r: cifar100(r, PAGE), "dataset.root: {root}/cifar-100-python/meta: not a readable CIFAR file"),
    "svhn another md5": (svhn, "dataset.root: {root}/train_32x32.mat is damaged or not the published file (md5 differs)"),
    "svhn truncated": (lambda r: svhn(r, b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"), "dataset.root: {root}/test_32x32.mat: not a readable SVHN file"),
    "svhn a page": (lambda r: svhn(r, PAGE), "dataset.root: {root}/test_32x32.mat: not a readable SVHN file"),
    "food101 a page as a list": (lambda r: food(r, "meta/test.json", PAGE), "dataset.root: {root}/food-101/meta/test.json: not a readable list of images"),
    "food101 a page as an image": (lambda r: [*food(r, "images/sushi/7.jpg", PAGE), "dataset.pack.size=null"], "dataset.root: unreadable image {root}/food-101/images/sushi/7.jpg (not an image)"),
    "npz empty": (npz(b""), "dataset.path: {root}/data.npz: not a readable .npz file"),
    "npz a page": (npz(PAGE), "dataset.path: {root}/data.npz: not a readable .npz file"),
    "npz wants to run code": (npz(train_labels=np.array([Attack()] * 12)), "dataset.path: {root}/data.npz: not a readable .npz file without pickles"),
    "npz another shape": (npz(train_images=np.zeros((12, 64), np.uint8)), "dataset.path: {root}/data.npz: train_images: expected (N, H, W), (N, H, W, C) or (N, C, H, W), got (12, 64)"),
    "npz a label too high": (npz(test_labels=np.arange(6)), "dataset.path: {root}/data.npz: test_labels: from 0 to 5, allowed 0 to 2"),
    "npz fewer labels": (npz(train_labels=np.arange(11) % 3), "dataset.path: {root}/data.npz: train: 12 images but labels of shape (11,)"),
    "folder with an unreadable image": (folder(lambda r: (r / "train/cat/1.png").write_bytes(PAGE), "dataset.pack.size=null"), "dataset.path: unreadable image {root}/train/cat/1.png (not an image)"),
    "folder with an empty class": (folder(lambda r: (r / "train/emu").mkdir()), "dataset.path: {root}/train/emu: the class has no images, by their names or by the first bytes of files without an ending"),
    "folder without classes": (folder(lambda r: flatten(r / "train")), "dataset.path: {root}/train: no class folders; expected {root}/train/<class>/<image>"),
    "folder with one class": (folder(lambda r: [shutil.rmtree(r / part / "cat") for part in ("train", "val")]), "dataset.path: {root}: classes: dog; there must be two or more"),
    "folder with other classes to test": (folder(lambda r: write_image(r / "val/emu/0.png")), "dataset.path: {root}: class emu is in val, but not in train"),
    "folder with a loop": (folder(lambda r: (r / "train/cat/loop").symlink_to(r / "train")), "dataset.path: {root}/train/cat/loop: a link back to {root}/train, which holds it"),
    "folder with a dead link": (folder(lambda r: (r / "train/cat/x.png").symlink_to(r / "gone")), "dataset.path: {root}/train/cat/x.png: a link that leads nowhere"),
    "teacher of other classes": (saved(classes=7), "teacher.path: {root}/t.pt does not fit resnet8: fc.weight is (7, 16), the network for this dataset has (10, 16)"),
    "teacher without a weight": (saved(without="fc.bias"), "teacher.path: {root}/t.pt does not fit resnet8: 1 missing, e.g. fc.bias; see teacher.strip_prefix"),
    "teacher with one more weight": (saved(ema=torch.zeros(1)), "teacher.path: {root}/t.pt does not fit resnet8: 1 too many, e.g. ema; see"),
    "teacher with the wrong prefix": (saved("teacher.strip_prefix=model.", prefix="module."), "teacher.path: {root}/t.pt does not fit resnet8: 47 missing, e.g. conv1.weight; 56 too many, e.g. module.conv1.weight; see"),
    "teacher whose names collide": (saved("+teacher.rename.head=fc", **{"head.bias": torch.zeros(10)}), "teacher.path: {root}/t.pt: fc.bias and head.bias both become fc.bias; see"),
    "teacher that wants to run code": (teacher(lambda p: torch.save({"fc.bias": Attack()}, p)), "teacher.path: {root}/t.pt: holds more than weights (reading it would run its code), or is damaged"),
    "teacher that is more than tensors": (saved(epoch=3), "teacher.path: {root}/t.pt: expected names and tensors, got 'epoch': int"),
    "teacher of integers": (saved(**{"fc.bias": torch.zeros(10, dtype=torch.int8)}), "teacher.path: {root}/t.pt: fc.bias is torch.int8, expected dense floating-point numbers"),
    "teacher truncated": (cut(lambda p: save_file(weights(), p), 9000), "teacher.path: {root}/t.pt: not a readable file of weights ("),
    "teacher truncated zip": (cut(lambda p: torch.save(weights(), p), 9000), "teacher.path: {root}/t.pt: not a readable file of weights ("),
    "teacher a folder": (teacher(lambda p: p.mkdir()), "teacher.path: {root}/t.pt: not a readable file of weights ([Errno 21] Is a directory"),
    "teacher absent": (teacher(lambda p: None), "teacher.path: {root}/t.pt: cannot be read (No such file or directory)"),
    "teacher of an unknown network": (given("teacher=train", "teacher.model.name=resnet188"), "teacher.model.name: timm knows no network 'resnet188'; nearest: resnet18"),
    "published teacher of an unknown network": (given("teacher=timm", "teacher.model.name=resnet188"), "teacher.model.name: timm knows no network 'resnet188'; nearest: resnet18"),
    "published teacher of other classes": (given("teacher=timm", "teacher.model.name=resnet18"), "teacher.model.name: resnet18 was trained for 1000 classes, the dataset has 10"),
    "published teacher that is not published": (given("teacher=timm", "teacher.model.name=resnet8"), "teacher.model.pretrained: "),
    "published student without a network": (given("student=timm", "student.name=resnet18", "student.pretrained=true"), "resnet18: its published weights cannot be had ("),
    "published student of a page": (published(lambda p: p.write_bytes(PAGE)), "test_resnet: {root}/w.pt: not a file of its weights ("),
    "published student that wants to run code": (published(lambda p: torch.save(Attack(), p)), "test_resnet: {root}/w.pt: not a file of its weights ("),
    "published student that is not published": (given("student.pretrained=true"), "student.pretrained: timm has no published weights of resnet8"),
    "file of a student without pretrained": (published(lambda p: p.write_bytes(PAGE), "student.pretrained=false"), "student.file: weights are read with pretrained=true only"),
    "new head without weights": (given("student.new_head=true"), "student.new_head: goes with pretrained=true; without published weights every head is new"),
    "published teacher with a head at zero": (given("teacher=timm", "teacher.model.name=resnet18", "teacher.model.zero_head=true"), "teacher.model.zero_head: a frozen teacher's classifier is that of its weights; set it to false"),
    "unknown tag": (given("student=timm", "student.name=resnet18.nosuch"), "student.name: Invalid pretrained tag (nosuch) for resnet18"),
    "student for another size of images": (given("student=timm", "student.name=vit_tiny_patch16_224"), "student: vit_tiny_patch16_224 does not take images of 8x8 (Input height (8) doesn't match model (224)); give student.size=224"),
    "student args that are kdrun's": (given("+student.args.num_classes=3"), "student: args.num_classes: kdrun gives this one itself"),
    "home of nobody": (given("dataset=npz", "dataset.path='~nobody-at-all/x.npz'"), "dataset.path: ~nobody-at-all/x.npz: no such home directory"),
    "mean of another length": (given("dataset.mean=[0.1,0.2]"), "dataset.mean: expected 1 numbers, one for each channel, got [0.1, 0.2]"),
    "std of another length": (given("dataset.std=[0.1,0.2]"), "dataset.std: expected 1 numbers, one for each channel, got [0.1, 0.2]"),
    "std zero": (given("dataset.std=[0]"), "dataset.std.0: must be greater than 0, got 0"),
    "std negative": (given("dataset.std=[-0.1]"), "dataset.std.0: must be greater than 0, got -0.1"),
    "std of a network zero": (given("student.std=[0.0]"), "student.std.0: must be greater than 0, got 0.0"),
    "args of a network that it lacks": (given("+student.args.depht=3"), "resnet8: the network cannot be built with args"),
    "args of a teacher that it lacks": (saved("+teacher.model.args.depht=3"), "resnet8: the network cannot be built with args"),
    "args of a network of another type": (given("++student.args.width=wide"), "resnet8: the network cannot be built with args"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_nothing_is_written(train, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "given"
    root.mkdir()
    make, message = REFUSED[case]
    arguments = make(root)
    before = everything(tmp_path)
    assert train(*RUN, *arguments) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: " + message.format(root=root)), lines[0]
    assert printed.out == ""
    assert everything(tmp_path) == before


def test_a_sweep_with_one_bad_file_is_refused_whole(train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    npz()(tmp_path / "good")
    *rest, _ = npz(test_labels=np.arange(6))(tmp_path / "bad")
    before = everything(tmp_path)
    paths = ",".join(str(tmp_path / name / "data.npz") for name in ("good", "bad"))
    assert train("-m", *RUN, *rest, f"dataset.path={paths}", "seed=0,1") == 2
    bad = tmp_path / "bad" / "data.npz"
    assert capsys.readouterr().err.splitlines() == [
        f"error: job 2 (dataset.path={bad} seed=0) and 1 more: dataset.path: {bad}: test_labels: from 0 to 5, "
        "allowed 0 to 2 (array class_names names more classes)"
    ]
    assert everything(tmp_path) == before


# what was read in the check and cannot be read any more when its job begins
SPOILED = {
    "cifar10 gone": (cifar, "cifar-10-batches-py/data_batch_2", None, "data_batch_2 is not there, and a download would write over"),
    "cifar10 damaged": (cifar, "cifar-10-batches-py/data_batch_2", PAGE, "data_batch_2: not a readable CIFAR file"),
    "npz damaged": (npz(), "data.npz", PAGE, "data.npz: not a readable .npz file"),
    "npz gone": (npz(), "data.npz", None, "data.npz: no such file"),
    "teacher gone": (saved(), "t.pt", None, "t.pt: no such file"),
    "image damaged": (folder(lambda root: None), "train/cat/1.png", PAGE, "1.png (not an image)"),
    "teacher damaged": (saved(), "t.pt", PAGE, "t.pt: not a readable file of weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_file_spoiled_after_the_check_fails_its_jobs_in_one_line_each(
    train, outputs, tmp_path, monkeypatch, capsys, case
):
    make, name, content, message = SPOILED[case]
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / name
    arguments = make(tmp_path / "given")
    carry_out = carrying.carry_out

    def spoiled(*arguments):
        if content is None:
            path.rename(path.with_name("gone"))
        else:
            path.write_bytes(content)
        for kept in dataset._KEPT.values():
            kept.clear()  # as in the process of a launcher
        return carry_out(*arguments)

    monkeypatch.setattr(carrying, "carry_out", spoiled)
    assert train("-m", *RUN, *arguments, "seed=0,1") == 1
    found = dict(find_records(outputs))
    assert [record["status"] for record in found.values()] == ["failed"] * 2
    for directory, record in found.items():
        assert record["error"]["type"] == "DataError"
        assert message in record["error"]["message"]
        assert "\n" not in record["error"]["message"]
        assert not list(directory.glob("*.safetensors"))
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "0 of 2 runs done"
    assert "Traceback" not in printed.err + printed.out
