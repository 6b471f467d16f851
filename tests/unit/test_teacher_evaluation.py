"""A teacher's logits of evaluation images, computed once: exactly as computed, and another name for whatever decides them."""

import json
import logging
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdrun.config.compose import Composer
from kdrun.core import signals
from kdrun.core.lock import Lock
from kdrun.core.registry import load, registered
from kdrun.data.views.center import Center
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.tip_adapter import Cache, TipAdapter
from kdrun.teachers.wrap import Ensemble, Tempered
from kdrun.teachers.zero_shot import ZeroShot
from kdrun.training import teacher_logits
from kdrun.training.assembly import Assembly
from kdrun.training.evaluator import Evaluator
from kdrun.training.teacher_logits import TeacherLogits
from tests.conftest import FAST, TEACHER
from tests.unit.test_kept import IMAGES, network
from tests.unit.test_published import write_image, write_tree

CPU = torch.device("cpu")


def evaluator(images=IMAGES, val=(0, 2, 3), batch=4, precision="fp32", center=None, named=None):
    index = torch.tensor(val)
    everything = torch.arange(len(images))
    splits = {"val": (images, index, index % 10), "test": (images, everything, everything % 10)}
    return Evaluator(splits, batch, precision, center=center, named=named)


def asked(outputs, net=None, on=None, channels_last=True):
    teacher = Teacher(net or network())
    return TeacherLogits(teacher, CPU, channels_last, outputs).of(on or evaluator())


def test_what_is_read_is_bitwise_what_the_teacher_says_and_it_is_asked_once(tmp_path, monkeypatch):
    plain = evaluator().logits(Teacher(network()).predict)
    first, figures = asked(tmp_path)
    monkeypatch.setattr(type(network()), "forward", lambda *_: pytest.fail("the teacher was asked"))
    second, again = asked(tmp_path)
    assert figures == again == {"key": figures["key"], "images": 15}
    for found in (first, second):
        assert list(found) == list(plain) == [("val", "teacher"), ("test", "teacher")]
        assert all(torch.equal(found[place], plain[place]) and found[place].dtype == torch.float32 for place in plain)


def test_of_no_images_nothing_is_kept(tmp_path):
    assert asked(tmp_path, on=Evaluator({}, 4)) == ({}, None)
    assert not list(tmp_path.iterdir())


def with_attribute(name, value):
    net = network()
    setattr(net.net, name, value)
    return net


def hidden(seed):
    """A network that another one holds without registering it."""
    return with_attribute("other", [network(seed)])


def zero_shot(scale=2.0, embeddings=1.0, resize="bicubic", std=0.2):
    clip = nn.Module()
    clip.encode_image = lambda x: x.flatten(1)[:, :4]
    return ZeroShot(clip, torch.eye(4) * embeddings, scale, [0.3], [std], (8, 8), "clip", resize)


def adapted(ratio=1.0, sharpness=1.0, target=(0, 1)):
    return TipAdapter(zero_shot(), Cache(torch.tensor(target), 4, 4, ratio, sharpness, chosen=False))


# What decides the logits of each kind of network that a teacher may be: plain first, then with one thing changed.
NETWORKS = {
    "weights": (network, lambda: network(1)),
    "flag": (lambda: with_attribute("stride", 1), lambda: with_attribute("stride", 2)),
    "config": (
        lambda: with_attribute("spec", SimpleNamespace(gain=(1.0, 2.0))),
        lambda: with_attribute("spec", SimpleNamespace(gain=(1.0, 3.0))),
    ),
    "array": (lambda: with_attribute("table", np.zeros(3)), lambda: with_attribute("table", np.ones(3))),
    "tensor": (lambda: with_attribute("table", torch.zeros(3)), lambda: with_attribute("table", torch.ones(3))),
    "function": (lambda: with_attribute("act", torch.relu), lambda: with_attribute("act", torch.tanh)),
    "hidden": (lambda: hidden(0), lambda: hidden(1)),
    "temperature": (lambda: Tempered(network(), 2.0), lambda: Tempered(network(), 3.0)),
    "member": (lambda: Ensemble([network(), network(1)]), lambda: Ensemble([network(), network(2)])),
    "member's temperature": (
        lambda: Ensemble([Tempered(network(), 2.0), network(1)]), lambda: Ensemble([network(), Tempered(network(1), 2.0)]),
    ),
    "scale": (zero_shot, lambda: zero_shot(scale=3.0)),
    "texts": (zero_shot, lambda: zero_shot(embeddings=2.0)),
    "resize": (zero_shot, lambda: zero_shot(resize="bilinear")),
    "statistics": (zero_shot, lambda: zero_shot(std=0.3)),
    "residual_ratio": (adapted, lambda: adapted(ratio=2.0)),
    "sharpness": (adapted, lambda: adapted(sharpness=2.0)),
    "labels": (adapted, lambda: adapted(target=(1, 1))),
}  # fmt: skip


def identity(net):
    spec = TeacherLogits(Teacher(net), CPU, True, None).spec
    return json.dumps(spec)


@pytest.mark.parametrize("change", NETWORKS)
def test_whatever_decides_what_a_network_says_is_in_the_name(change):
    plain, other = NETWORKS[change]
    assert identity(plain()) == identity(plain())
    assert identity(plain()) != identity(other())


def test_each_kind_of_teacher_is_one_of_these_networks():
    load("teacher")  # Network, Ensemble of members, ZeroShot, TipAdapter; a new kind is to be looked at here
    own = {name for name, kind in registered("teacher").items() if kind.__module__.startswith("kdrun.")}
    assert own == {"none", "train", "distilled", "timm", "file", "ensemble", "open_clip", "clip", "tip_adapter"}


def test_other_images_and_ways_to_show_them_have_other_names(tmp_path):
    # bf16 convolutions want channels of 4 and more: only names are compared, so nothing is asked
    keys = [
        json.dumps(made.identity())
        for made in (
            evaluator(), evaluator(IMAGES.flip(0)), evaluator(val=(0, 3, 2)), evaluator(val=(0, 2)), evaluator(batch=5),
            evaluator(precision="bf16"), evaluator(center=Center(6, 1.0, "bilinear")),
            evaluator(center=Center(6, 0.5, "bilinear")), evaluator(named={"val": "v", "test": "t"}),
            evaluator(named={"val": "v", "test": "u"}), evaluator(val=(0, 3, 2), named={"val": "v", "test": "t"}),
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert json.dumps(evaluator(IMAGES.clone()).identity()) == keys[0]


def test_another_machine_or_memory_format_has_another_name(monkeypatch):
    names = {identity(network()), json.dumps(TeacherLogits(Teacher(network()), CPU, False, None).spec)}
    with monkeypatch.context() as patch:
        patch.setattr(teacher_logits, "_device", lambda _: "NVIDIA H200")
        names.add(identity(network()))
    with monkeypatch.context() as patch:
        patch.setattr(teacher_logits, "package_versions", lambda: {"torch": "9"})
        names.add(identity(network()))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        names.add(identity(network()))
    assert len(names) == 5


def test_files_that_nobody_has_read_are_said_and_asked_of_anew(tmp_path, caplog):
    files = SimpleNamespace(
        index_select=IMAGES.index_select, device=CPU, batches=lambda parts: (IMAGES[i] for i in parts)
    )
    index = torch.arange(3)
    caplog.set_level(logging.INFO)
    found, figures = asked(tmp_path, on=Evaluator({"test": (files, index, index)}, 2))
    assert figures is None
    assert len(found["test", "teacher"]) == 3
    assert not list(tmp_path.iterdir())
    assert "nobody has read the files for their hash" in caplog.text


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-3] + b"abc", lambda b: b"no tensors"])
def test_damage_is_said_and_built_anew(tmp_path, caplog, damage):
    wanted, figures = asked(tmp_path)
    path = tmp_path / "artifacts" / "teacher_evaluation" / figures["key"] / "logits.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    found, _ = asked(tmp_path)
    assert all(torch.equal(found[place], wanted[place]) for place in wanted)
    [line] = caplog.messages
    assert line.startswith(f"{path.parent}: damaged (ValueError: ")
    assert line.endswith("; it is built anew")


def test_a_signal_that_is_put_off_ends_the_wait_for_another_process(tmp_path):
    path = tmp_path / "a.lock"
    with Lock(path), signals.taken(), signals.put_off():  # of this process, so of one that lives
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.PutOff):
            Lock(path)._wait()
        signals._TAKEN.received.clear()


def contents(folder):
    """Of a finished run: its figures, and the bytes of what it predicted."""
    record = json.loads((folder / "record.json").read_text())
    files = {path.name: path.read_bytes() for path in sorted((folder / "predictions").iterdir())}
    return record, files


def test_runs_are_bitwise_the_same_and_the_second_student_asks_nothing(train, outputs, tmp_path, monkeypatch):
    calls = []
    predict = Teacher.predict
    monkeypatch.setattr(Teacher, "predict", lambda self, view: calls.append(len(view.index)) or predict(self, view))
    off = "execution.keep_teacher_evaluation=false"
    assert train(*FAST, *TEACHER, "seed=1", off) == 0
    [place] = outputs.glob("runs/distill/*/*/*")
    plain, plain_files = contents(place)
    assert plain["artifacts"] == {}
    assert not (outputs / "artifacts" / "teacher_evaluation").exists()
    assert sum(calls) == 140 + 400
    place.rename(tmp_path / "aside")
    calls.clear()
    assert train(*FAST, *TEACHER, "seed=0") == 0
    assert sum(calls) == 140 + 400
    calls.clear()
    assert train(*FAST, *TEACHER, "seed=1") == 0
    assert not calls
    record, files = contents(place)
    assert record["metrics"] == plain["metrics"]
    assert files == plain_files
    assert "test-teacher.npz" in files
    [folder] = (outputs / "artifacts" / "teacher_evaluation").iterdir()
    assert record["artifacts"]["teacher_evaluation"] == {"key": folder.name, "images": 140 + 400}


@pytest.mark.parametrize("how", ["dataset.pack.size=8", "dataset.stream=true", "dataset.pack.size=null"])
def test_a_copy_of_the_files_has_the_same_name_and_another_file_another(tmp_path, how):
    def name(root):
        with Composer() as composer:
            config = composer.typed([
                "dataset=imagefolder", f"dataset.path={root}", "dataset.size=8", how, "method=supervised", "loss=ce",
                "dataset.val_fraction=0.34", f"execution.outputs={tmp_path / 'outputs'}",
            ])  # fmt: skip
        made = Assembly.of(config, CPU).evaluator
        assert (made.named == {}) == (how == "dataset.pack.size=null")  # else the pixels are read, which are in memory
        return made.identity()

    write_tree(tmp_path / "data")
    first = name(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert name(tmp_path / "copy") == first
    write_image(tmp_path / "copy" / "val" / "cat" / "1.png", color=(1, 2, 3))
    assert name(tmp_path / "copy")["images"]["test"] != first["images"]["test"]
