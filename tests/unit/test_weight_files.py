"""Files of weights as people have them, through the one reader: of teachers, and of students."""

import argparse
import collections
import datetime
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.model import ModelConfig
from kdrun.config.nodes import teacher_of
from kdrun.config.weights import WeightsConfig
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.schema import build
from kdrun.core.weight_file import read_entry
from kdrun.methods.step import Setup
from kdrun.models.fit import Fit
from kdrun.teachers.kind import make_teacher, untrained_teacher

SETUP = Setup(10, 3, (0.3,) * 3, (0.2,) * 3, train_target=torch.zeros(5, dtype=torch.int64))
MODEL = {"name": "resnet8", "args": {"width": 4}}
PIXELS = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)


def network(seed=1):
    return SETUP.network(build(ModelConfig, MODEL, "m"), seed).eval()


RAW, EMA = (dict(network(seed).net.state_dict()) for seed in (2, 1))


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def lightning(state):
    return {
        "epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.4.0", "state_dict": under("model.", state),
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}], "lr_schedulers": [],
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "when": datetime.datetime(2024, 1, 2, 3, 4)},
    }  # fmt: skip


def of_timm(state):
    return {
        "epoch": 9, "arch": "resnet8", "state_dict": RAW, "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}},
        "version": 2, "args": argparse.Namespace(lr=0.1, data_dir=pathlib.PosixPath("/data"), mean=(0.5,)),
        "amp_scaler": {"scale": 1.0}, "state_dict_ema": state, "metric": np.float64(71.2),
    }  # fmt: skip


def torchvision(state):
    return {
        "model": state, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"last_epoch": 3, "milestones": collections.Counter([30, 60])}, "epoch": 3,
        "args": argparse.Namespace(device=torch.device("cpu"), dtype=torch.float16, size=torch.Size([3])),
    }  # fmt: skip


def averaged_model(state):
    """What torch.optim.swa_utils.AveragedModel saves, of a network that thop has counted."""
    counters = {"module.total_ops": torch.zeros(1), "module.layer1.total_params": torch.zeros(1)}
    return {
        "n_averaged": torch.tensor(5),
        **under("module.", state),
        **counters,
        "criterion.centers": torch.zeros(9, 9),
    }


def deit(state):
    return {
        "model": RAW, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 4, "model_ema": state,
        "scaler": {"scale": 65536.0}, "args": argparse.Namespace(model="deit", output_dir=pathlib.Path("x")),
    }  # fmt: skip


def mmpretrain(state):
    head = {f"head.{name}" if name.startswith("fc.") else f"backbone.{name}": value for name, value in state.items()}
    meta = {"time": datetime.datetime(2024, 1, 1), "dataset_meta": {"classes": ["a", "b"]}, "seed": np.int64(3)}
    return {"meta": meta, "state_dict": collections.OrderedDict(head), "message_hub": {"log_scalars": {}}}


FORMS = {
    "plain": lambda state: state,
    "lightning": lightning,
    "timm": of_timm,
    "torchvision": torchvision,
    "RepDistiller": lambda state: {
        "epoch": 240, "model": state, "best_acc": torch.tensor(72.3), "accuracy": torch.tensor(72.3),
        "optimizer": {"state": {}},
    },
    "mdistiller": lambda state: {"model": state, "epoch": 240, "best_acc": np.float64(72.3)},
    "mdistiller, distiller": lambda state: {"model": under("module.student.", state), "epoch": np.int64(240)},
    "USB": lambda state: {
        "model": under("module.", RAW), "ema_model": under("module.", state), "optimizer": {"state": {}}, "it": 100,
        "best_eval_acc": np.float32(0.9), "scheduler": {"base_lrs": [0.03]},
    },
    "kekmodel": lambda state: {
        "epoch": 3, "state_dict": RAW, "ema_state_dict": state, "acc": np.mean([94.0]), "best_acc": 94.0,
        "optimizer": {"state": {}}, "scheduler": {"lr_lambdas": [None]},
    },
    "DeiT": deit,
    "MMPretrain": mmpretrain,
    "averaged": averaged_model,
    "compiled": lambda state: under("_orig_mod.", state),
    "compiled and wrapped": lambda state: under("_orig_mod.module.", state),
    "half": lambda state: {n: v.half() if v.is_floating_point() else v for n, v in state.items()},
    "bf16": lambda state: {n: v.bfloat16() if v.is_floating_point() else v for n, v in state.items()},
    "nested": lambda state: {"checkpoint": {"net": state, "acc": 93.0, "epoch": 3}},
    "defaultdict": lambda state: collections.defaultdict(dict, {"weights": state, "log": collections.deque([1.0])}),
}  # fmt: skip


def teacher(path, **keys):
    return make_teacher(teacher_of({"source": "file", "model": MODEL, "path": str(path), **keys}), SETUP, {}).eval()


def student(path, **keys):
    model = build(ModelConfig, {**MODEL, "pretrained": True, "file": str(path), **keys}, "student")
    return SETUP.network(model, seed=0).eval()


@pytest.mark.parametrize("side", [teacher, student])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_on_both_sides_and_its_averaged_weights_first(tmp_path, form, side):
    path = tmp_path / "c.pth"
    torch.save(FORMS[form](EMA), path)
    tolerance = {"atol": 0.05, "rtol": 0.05} if form in ("half", "bf16") else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(side(path)(PIXELS).logits, network()(PIXELS).logits, **tolerance)


@pytest.mark.parametrize("side", [teacher, student])
def test_safetensors_with_metadata(tmp_path, side):
    save_file(under("module.", EMA), tmp_path / "c.safetensors", metadata={"format": "pt", "step": "3"})
    assert torch.equal(side(tmp_path / "c.safetensors")(PIXELS).logits, network()(PIXELS).logits)


@pytest.mark.parametrize("form", ["timm", "USB", "kekmodel", "DeiT"])
def test_a_network_of_timm_takes_the_same_weights(tmp_path, form, monkeypatch):
    own = SETUP.network(build(ModelConfig, {"name": "test_resnet.r160_in1k"}, "m"), seed=1).net.state_dict()
    other = {name: value * 0 for name, value in own.items()}
    monkeypatch.setattr(sys.modules[__name__], "RAW", other)
    torch.save(FORMS[form](dict(own)), tmp_path / "c.pth")
    keys = {"name": "test_resnet.r160_in1k", "args": {}}
    taught = teacher(tmp_path / "c.pth", model=keys).net.state_dict()
    trained = student(tmp_path / "c.pth", **keys).net.state_dict()
    head = ("fc.weight", "fc.bias")  # timm leaves it out where its published classes are others
    assert all(torch.equal(taught[name], value) for name, value in own.items())
    assert all(torch.equal(trained[name], value) for name, value in own.items() if name not in head)


def test_the_log_says_what_was_taken_and_what_else_there_was(tmp_path, caplog):
    torch.save(FORMS["kekmodel"](under("module.", EMA)), tmp_path / "c.pth")
    caplog.set_level(logging.INFO, "kdrun")
    for side in (teacher, student):
        caplog.clear()
        side(tmp_path / "c.pth")
        said = "\n".join(caplog.messages)
        assert "took ema_state_dict; there are also state_dict" in said
        assert "took module. off" in said
    torch.save(averaged_model(EMA), tmp_path / "c.pth")
    teacher(tmp_path / "c.pth")
    assert "left out 4 (no weights), e.g. n_averaged" in caplog.text


@pytest.mark.parametrize("side", [teacher, student])
def test_an_entry_is_chosen(tmp_path, side):
    torch.save({"a": {"net.v1": RAW, "other": EMA}, "b": 3}, tmp_path / "c.pth")
    assert torch.equal(side(tmp_path / "c.pth", entry="a.other")(PIXELS).logits, network()(PIXELS).logits)
    assert torch.equal(side(tmp_path / "c.pth", entry="a.net.v1")(PIXELS).logits, network(2)(PIXELS).logits)
    with pytest.raises(
        ConfigError, match=rf"2 entries hold weights: .*; choose with {side.__name__}\.entry=a\.net\.v1"
    ):
        side(tmp_path / "c.pth")
    with pytest.raises(ConfigError, match=rf"{side.__name__}\.entry: .*: no entry 'a\.othr'; nearest: a\.other"):
        side(tmp_path / "c.pth", entry="a.othr")


def test_a_small_entry_beside_the_weights_is_none():
    from kdrun.core.weight_file import chosen_entry

    content = {"model": RAW, "ema": {"decay": torch.tensor(0.999)}, "best": torch.tensor(3.0)}
    assert chosen_entry(content, "").place == "model"
    assert chosen_entry(RAW, "").place == ""


DATA = {
    "namespace": argparse.Namespace(a=1, b=argparse.Namespace(c=[2])),
    "numpy numbers": [np.float64(1), np.float32(2), np.int64(3), np.bool_(True), np.str_("x"), np.datetime64("2024-01-01")],
    "numpy arrays": [np.zeros(3), np.zeros((2, 2), "f4"), np.array(["a", "b"]), np.zeros(2, bool), np.zeros(2, ">i4")],
    "numpy types": [np.dtype("float32"), np.dtype("int64")],
    "torch": [torch.float16, torch.Size([1]), torch.device("cpu"), torch.nn.Parameter(torch.zeros(1)), torch.strided],
    "containers": [
        collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.defaultdict(int), {1}, (1, (2,)),
        frozenset({1}), collections.Counter("aab"), collections.deque([1], maxlen=3), slice(1, 2), range(3), b"x", bytearray(b"x"), 1j,
    ],
    "time": [
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.date(2024, 1, 1), datetime.time(1), datetime.timedelta(1),
    ],
    "paths": [pathlib.Path("/a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:/a")],
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", DATA)
def test_plain_data_beside_the_weights_is_read(tmp_path, kind, zipped):
    torch.save({"model": EMA, "beside": DATA[kind]}, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert read_entry(tmp_path / "c.pth", "").place == "model"


class Odd:
    """Somebody's class."""


def test_what_is_not_data_is_named_with_a_line_that_converts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("class Trainer:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import theirs  # type: ignore[import-not-found]

    torch.save({"state_dict": EMA, "trainer": theirs.Trainer()}, "c.pth")
    with pytest.raises(DataError, match=r"damaged: theirs\.Trainer; .* where theirs is installed: python -c") as found:
        read_entry(pathlib.Path("c.pth"), "teacher.path: c.pth")
    line = str(found.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", line], check=True)
    assert torch.equal(teacher("weights.pt")(PIXELS).logits, network()(PIXELS).logits)
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), "m.pth")
    with pytest.raises(DataError, match=r"damaged: torch\.nn\.modules\.") as found:
        read_entry(pathlib.Path("m.pth"), "x")
    line = str(found.value).partition('python -c "')[2].rpartition('"')[0]
    subprocess.run([sys.executable, "-c", line], check=True)
    assert list(torch.load("weights.pt")) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    "function", [eval, exec, getattr, print, open, __import__, compile, setattr, input, type, np.load, np.fromfile]
)
def test_no_function_is_called(tmp_path, function):
    class Call:
        def __reduce__(self):
            return function, ("1",)

    torch.save({"model": EMA, "beside": Call()}, tmp_path / "c.pth")
    with pytest.raises(DataError, match="would run its code"):
        read_entry(tmp_path / "c.pth", "x")


# ------------------------------------------------------------------------------------------------- names and order


def fit(path, own, **reading):
    return Fit(WeightsConfig(**reading), own, "f", "teacher").read(path)


def test_what_is_dropped_is_said_and_a_pattern_without_effect_refused(tmp_path):
    torch.save({"epoch": 3, "aux.w": torch.zeros(1), "aux2.w": torch.zeros(1), **EMA}, tmp_path / "c.pth")
    found = fit(tmp_path / "c.pth", EMA, drop=["epoch", "aux", r"^aux\d"])
    assert list(found.state) == list(EMA)
    assert "left out 1 (teacher.drop: aux), e.g. aux.w" in found.notes
    with pytest.raises(ConfigError, match=r"teacher\.drop: auxx: no name in the file begins so"):
        fit(tmp_path / "c.pth", EMA, drop=["epoch", "aux", r"^aux\d", "auxx"])
    with pytest.raises(DataError, match=r"got 'epoch': int; teacher\.drop leaves it out"):
        fit(tmp_path / "c.pth", EMA)


def test_a_given_prefix_leaves_out_what_does_not_begin_with_it(tmp_path):
    torch.save({"model": {**under("module.teacher.", RAW), **under("module.student.", EMA)}}, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match=r"module\.teacher\.\S+ and module\.student\.\S+ both become .*strip_prefix"):
        teacher(tmp_path / "c.pth")
    made = teacher(tmp_path / "c.pth", strip_prefix="module.student.")
    assert torch.equal(made(PIXELS).logits, network()(PIXELS).logits)


def test_patterns_beside_plain_keys(tmp_path):
    renames = {"shortcut": "downsample", "fc.": "linear."}
    theirs = {}
    for name, value in EMA.items():
        for old, new in renames.items():
            name = name.replace(old, new)
        theirs[name] = value
    torch.save(theirs, tmp_path / "c.pth")
    made = teacher(tmp_path / "c.pth", rename={r"^(layer.*)\.downsample\.": r"\1.shortcut.", "linear": "fc"})
    assert torch.equal(made(PIXELS).logits, network()(PIXELS).logits)
    with pytest.raises(ConfigError, match=r"teacher\.rename.*'\^\(' is not a regular expression"):
        teacher(tmp_path / "c.pth", rename={"^(": "x"})


@pytest.mark.parametrize("side", [teacher, student])
def test_tensors_in_the_networks_order_need_no_names(tmp_path, side, caplog):
    caplog.set_level(logging.INFO, "kdrun")
    theirs = {f"a{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(EMA.items())}
    torch.save(theirs, tmp_path / "c.pth")
    assert torch.equal(side(tmp_path / "c.pth", match="order")(PIXELS).logits, network()(PIXELS).logits)
    assert "by order: a0.weight -> conv1.weight, " in caplog.text
    last = list(theirs)[-1]
    torch.save({**theirs, "more.weight": torch.zeros(3)}, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match=r"match=order: \d+ tensors for .*left over is more\.weight of the file"):
        side(tmp_path / "c.pth", match="order")
    torch.save({name: value for name, value in theirs.items() if name != last}, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match=r"match=order: .*left over is fc\.bias of the network"):
        side(tmp_path / "c.pth", match="order")


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}, r"place 1: a\.weight \(2, 3\) in the file, b\.weight \(3, 2\)"),
        ({"a.weight": torch.zeros(3, 2), "a.running_mean": torch.zeros(3)}, r"place 2: a\.running_mean .* b\.bias"),
    ],
)  # fmt: skip
def test_another_order_is_refused(tmp_path, theirs, message):
    torch.save(theirs, tmp_path / "c.pth")
    own = {"b.weight": torch.zeros(3, 2), "b.bias": torch.zeros(3)}
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path / "c.pth", own, match="order")


def test_prefixes_are_taken_off_only_where_all_names_fit_then(tmp_path):
    torch.save({**under("module.", EMA), "module.more": torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match=r"e\.g\. module\.conv1\.weight; see teacher\.strip_prefix"):
        untrained_teacher(teacher_of({"source": "file", "model": MODEL, "path": str(tmp_path / "c.pth")}), SETUP)


# ------------------------------------------------------------------------------------------------------- run keys


TEACHER = ["teacher=file", "student@teacher.model=resnet8", "dataset=digits"]
STUDENT = ["teacher=none", "loss=ce", "student=resnet8", "student.pretrained=true", "dataset=digits"]


@pytest.mark.parametrize(
    ("words", "key"), [([*TEACHER, "teacher.path="], "teacher"), ([*STUDENT, "student.file="], "student")]
)
def test_only_runs_whose_weights_are_others_by_now_have_another_key(tmp_path, words, key):
    """Of a file with averaged weights the others were taken once; the student's by timm, which knew two names."""
    *words, path = words
    files = {
        "raw": {"state_dict": RAW}, "usb": {"model": RAW, "ema_model": EMA}, "deit": {"model": RAW, "model_ema": EMA},
        "ema alone": {"ema_model": EMA},
    }  # fmt: skip
    with Composer() as composer:
        for name, content in files.items():
            torch.save(content, tmp_path / name)
            config = composer.typed([*words, f"{path}{tmp_path / name}"])
            entry = config.teacher.entry if key == "teacher" else config.students[0].entry
            known = ("deit",) if key == "student" else ()
            assert entry == {"usb": "ema_model", "deit": "model_ema"}.get("" if name in known else name)
            there = f"{key}.entry={entry}" if entry else f"{key}.entry=null"
            assert run_key(composer.typed([*words, f"{path}{tmp_path / name}", there])) == run_key(config)


def test_keys_that_are_about_a_file_want_one():
    with Composer() as composer:
        for word in ("student.entry=a", "student.match=order", "student.drop=[a]"):
            with pytest.raises(ConfigError, match=rf"{word.partition('=')[0]}: is about the weights in student\.file"):
                composer.typed([*STUDENT[:3], word])
        with pytest.raises(ConfigError, match=r"student\.match: not for open_clip"):
            composer.typed([*STUDENT[:2], "student=open_clip", "student.match=order"])
