"""A teacher of more classes than the dataset: its head is cut to those that the dataset has."""

import logging
from dataclasses import replace

import pytest
import timm
import torch

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.model import ModelConfig
from kdrun.config.nodes import teacher_of
from kdrun.core.errors import ConfigError
from kdrun.core.schema import build
from kdrun.methods.step import Setup
from kdrun.teachers.kind import make_teacher, untrained_teacher

WNIDS = ("n01641577", "n02123045", "n04146614")  # of Tiny-ImageNet, which ImageNet has too
NUMBERS = [30, 281, 779]
SETUP = Setup(3, 3, (0.3,) * 3, (0.2,) * 3, WNIDS, train_target=torch.zeros(5, dtype=torch.int64))
WHOLE = replace(SETUP, num_classes=1000, class_names=())
MODEL = {"name": "resnet8", "args": {"width": 4}}
PIXELS = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture
def whole(tmp_path):
    """A network of ImageNet's classes, and the file of its weights."""
    network = WHOLE.network(build(ModelConfig, MODEL, "m"), seed=1).eval()
    torch.save(network.net.state_dict(), tmp_path / "t.pt")
    return network, tmp_path / "t.pt"


def spec(path, **keys):
    return teacher_of({"source": "file", "model": MODEL, "path": str(path), **keys})


def test_by_numbers_by_ids_by_names_and_by_a_file(whole, tmp_path, caplog):
    network, path = whole
    caplog.set_level(logging.INFO, "kdrun")
    wanted = network(PIXELS).logits[:, NUMBERS]
    (tmp_path / "numbers.txt").write_text("\n".join(map(str, NUMBERS)) + "\n")
    (tmp_path / "all.txt").write_text(
        "\n".join("abc"[NUMBERS.index(k)] if k in NUMBERS else f"x{k}" for k in range(1000))
    )
    names = replace(SETUP, class_names=("Bullfrog", "Tabby", "school bus"))
    plain = replace(SETUP, class_names=("a", "b", "c"))
    none = replace(SETUP, class_names=())
    for setup, classes in (
        (SETUP, "auto"), (names, "auto"), (none, NUMBERS), (none, str(tmp_path / "numbers.txt")),
        (plain, str(tmp_path / "all.txt")),
    ):  # fmt: skip
        caplog.clear()
        made = make_teacher(spec(path, classes=classes), setup, {}).eval()
        torch.testing.assert_close(made(PIXELS).logits, wanted)
        assert "of its 1000 classes 3 are the dataset's: 30, 281, 779" in caplog.text
        with torch.device("meta"):
            untrained_teacher(spec(path, classes=classes), setup)


def test_the_order_is_that_of_the_labels(whole):
    network, path = whole
    made = make_teacher(spec(path, classes=NUMBERS[::-1]), SETUP, {}).eval()
    torch.testing.assert_close(made(PIXELS).logits, network(PIXELS).logits[:, NUMBERS[::-1]])


def test_with_tensors_by_order(whole, tmp_path):
    network, _ = whole
    theirs = {f"a{i}.{name.rpartition('.')[2]}": v for i, (name, v) in enumerate(network.net.state_dict().items())}
    torch.save(theirs, tmp_path / "o.pt")
    made = make_teacher(spec(tmp_path / "o.pt", classes="auto", match="order"), SETUP, {}).eval()
    torch.testing.assert_close(made(PIXELS).logits, network(PIXELS).logits[:, NUMBERS])


@pytest.mark.parametrize(
    ("classes", "setup", "message"),
    [
        ([1, 2], SETUP, r"teacher\.classes: 2 classes for the dataset's 3"),
        ([1, 2, 2], SETUP, r"teacher\.classes: 2 stands twice"),
        ([1, 2, 1000], SETUP, r"teacher\.classes: 1000: the teacher has 1000 classes, 0 to 999"),
        ([1, -2, 3], SETUP, r"teacher\.classes.*must be greater than or equal to 0"),
        ("none.txt", SETUP, r"teacher\.classes: none\.txt: no such file; give auto, numbers, or a text file"),
        ("auto", replace(SETUP, class_names=()), r"the dataset's classes have no names"),
        ("auto", replace(SETUP, class_names=("tabby", "unicorn", "x")), r"2 of the dataset's 3 classes are none of .*'unicorn'"),
        ("auto", replace(SETUP, class_names=("crane", "tabby", "toad")), r"'crane' is what several of .* called: 134, 517"),
        (None, SETUP, r"fc\.weight is \(1000, 16\), the network for this dataset has \(3, 16\).*teacher\.classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_before_anything_runs(whole, classes, setup, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        untrained_teacher(spec(whole[1], classes=classes), setup)


def test_published_weights_of_timm(tmp_path, monkeypatch):
    name = "test_resnet.r160_in1k"
    net = timm.create_model(name, num_classes=1000)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    keys = {"source": "timm", "model": {"name": name, "pretrained": True, "file": str(tmp_path / "w.pt")}}
    with pytest.raises(ConfigError, match=r"trained for 1000 classes, the dataset has 3; .*teacher\.classes=auto"):
        untrained_teacher(teacher_of(keys), SETUP)
    asked = teacher_of({**keys, "classes": "auto"})
    made = make_teacher(asked, SETUP, {}).eval()
    whole = WHOLE.network(build(ModelConfig, keys["model"], "m"), seed=0).eval()
    assert (made.spec.mean, made.spec.num_classes) == (whole.spec.mean, 3)
    torch.testing.assert_close(made(PIXELS).logits, whole(PIXELS).logits[:, NUMBERS])
    with torch.device("meta"):
        assert untrained_teacher(asked, SETUP).spec.num_classes == 3


def test_the_names_of_the_dataset_count_for_the_run_where_they_are_asked(whole):
    words = ["teacher=file", "student@teacher.model=resnet8", f"teacher.path={whole[1]}", "dataset=digits"]
    names = "dataset.class_names=[a,b,c,d,e,f,g,h,i,j]"
    with Composer() as composer:
        keys = {
            classes: [run_key(composer.typed([*words, f"teacher.classes={classes}", *more])) for more in ([], [names])]
            for classes in ("null", "[0,1,2,3,4,5,6,7,8,9]", "auto")
        }
    assert keys["null"][0] == keys["null"][1] != keys["auto"][0] != keys["auto"][1]
    assert keys["[0,1,2,3,4,5,6,7,8,9]"][0] == keys["[0,1,2,3,4,5,6,7,8,9]"][1]
