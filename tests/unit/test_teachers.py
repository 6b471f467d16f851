"""Teachers from files, from timm and as ensembles: what is loaded, and what is refused."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdrun.config import ModelConfig, TeacherConfig
from kdrun.errors import ConfigError, DataError
from kdrun.method import Setup, Teacher
from kdrun.schema import build
from kdrun.teachers import make_teacher, read_state, renamed, untrained_teacher

SETUP = Setup(10, 1, (0.3,), (0.2,), torch.zeros(5, dtype=torch.int64))
PIXELS = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
MODEL = {"name": "resnet8", "args": {"width": 4}}


def spec(**keys) -> TeacherConfig:
    return build(TeacherConfig, {"source": "file", "model": MODEL, **keys}, "teacher")


def network(seed=1):
    return SETUP.network(build(ModelConfig, MODEL, "m"), seed).eval()


def published(prefix="module.", head="linear"):
    """Weights under the names of an old checkpoint."""
    state = network().net.state_dict()
    return {
        prefix + name.replace("fc.", f"{head}."): value for name, value in state.items() if "num_batches" not in name
    }


@pytest.mark.parametrize("kind", ["safetensors", "plain", "checkpoint"])
def test_weights_of_a_file_under_other_names(tmp_path, kind):
    path = tmp_path / ("t.safetensors" if kind == "safetensors" else "t.th")
    if kind == "safetensors":
        save_file(published(), path)
    else:
        torch.save(published() if kind == "plain" else {"state_dict": published(), "best_prec1": 93.1}, path)
    made = make_teacher(spec(path=str(path), strip_prefix="module.", rename={"linear": "fc"}), SETUP, {})
    teacher = Teacher(made)
    assert torch.equal(teacher(PIXELS).logits, network()(PIXELS).logits)
    assert not any(p.requires_grad for p in made.parameters())


def test_own_normalisation_is_respected(tmp_path):
    torch.save(network().net.state_dict(), tmp_path / "t.pt")
    made = make_teacher(spec(path=str(tmp_path / "t.pt"), model={**MODEL, "mean": [0.9], "std": [0.5]}), SETUP, {})
    x = (PIXELS.float() / 255 - 0.9) / 0.5
    torch.testing.assert_close(made.eval()(PIXELS).logits, network().net(x))


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda p: p.write_bytes(pickle.dumps(Attack())), DataError, "would run its code"),
        (lambda p: torch.save({"fc.weight": Attack()}, p), DataError, "would run its code"),
        (lambda p: p.write_bytes(b""), DataError, "not a readable file of weights|is damaged"),
        (lambda p: torch.save([1, 2], p), DataError, "expected names and tensors"),
        (lambda p: torch.save(published(), p), ConfigError, r"missing, e\.g\. conv1\.weight; .* too many, e\.g\. module\.conv1\.weight; see teacher\.strip_prefix"),
        (lambda p: torch.save({k: v for k, v in network().net.state_dict().items() if not k.startswith("fc")}, p), ConfigError, r"2 missing, e\.g\. fc\.weight"),
        (lambda p: torch.save({**network().net.state_dict(), "fc.weight": torch.zeros(100, 16)}, p), ConfigError, r"fc\.weight is \(100, 16\), the network for this dataset has \(10, 16\)"),
    ],
    ids=["pickle", "attack inside", "empty", "list", "names", "missing", "classes"],
)  # fmt: skip
def test_unfit_files_are_refused_before_anything_runs(tmp_path, monkeypatch, write, error, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.th"
    write(path)
    with torch.device("meta"), pytest.raises(error, match=message):
        untrained_teacher(spec(path=str(path)), SETUP)
    assert not (tmp_path / "attacked").exists()


def test_a_truncated_file(tmp_path):
    for name, save in (
        ("t.safetensors", lambda p: save_file(network().net.state_dict(), p)),
        ("t.pt", lambda p: torch.save(published(), p)),
    ):
        path = tmp_path / name
        save(path)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(DataError, match=r"not a readable file of weights|is damaged"):
            read_state(path)


def test_rename_takes_whole_parts_only():
    got = renamed(
        {"m.linear.weight": torch.zeros(1), "m.linear2.bias": torch.zeros(1), "m.linear": torch.zeros(1)},
        "m.",
        {"linear": "fc"},
    )
    assert list(got) == ["fc.weight", "linear2.bias", "fc"]


def test_ensemble_is_the_mean_of_the_probabilities(tmp_path):
    members = []
    for seed in (1, 2, 3):
        torch.save(network(seed).net.state_dict(), tmp_path / f"{seed}.pt")
        members.append({"source": "file", "model": MODEL, "path": str(tmp_path / f"{seed}.pt")})
    made = make_teacher(build(TeacherConfig, {"source": "ensemble", "members": members}, "teacher"), SETUP, {})
    made.eval()
    mean = torch.stack([network(seed)(PIXELS).logits.softmax(1) for seed in (1, 2, 3)]).mean(0)
    torch.testing.assert_close(made(PIXELS).logits.softmax(1), mean)
    with pytest.raises(ConfigError, match="has no feature 'prelogits'"):
        made(PIXELS, ("prelogits",))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"source": "ensemble", "members": [], "model": None},
            r"teacher: an ensemble needs two teacher\.members or more, got 0",
        ),
        ({"members": [{"source": "none"}]}, r"teacher\.members are for source=ensemble"),
        ({"path": None}, r"teacher\.path is missing"),
        ({"model": None, "path": "x"}, r"teacher\.model is missing"),
    ],
)
def test_incomplete_teachers(keys, message):
    with pytest.raises(ConfigError, match=message):
        spec(**keys)


def test_a_timm_teacher_must_know_the_classes_and_have_weights():
    model = {"name": "resnet18", "pretrained": True}
    with pytest.raises(
        ConfigError, match=r"resnet18 was trained for 1000 classes, the dataset has 10; its head would be random"
    ):
        untrained_teacher(spec(source="timm", model=model), SETUP)
    with pytest.raises(ConfigError, match=r"source=timm needs published weights"):
        untrained_teacher(spec(source="timm", model={"name": "resnet18"}), SETUP)


def test_pretrained_weights_from_a_local_file_bring_their_normalisation(tmp_path):
    import timm

    setup = Setup(7, 3, (0.1, 0.1, 0.1), (1.0, 1.0, 1.0), torch.zeros(5, dtype=torch.int64))
    source = timm.create_model("test_resnet", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    made = setup.network(ModelConfig(name="test_resnet", pretrained=True, file=str(tmp_path / "w.safetensors")), 0)
    published_cfg = timm.get_pretrained_cfg("test_resnet")
    assert made.spec.mean == tuple(published_cfg.mean)
    assert torch.equal(
        made.net.state_dict()["conv1.0.weight"]
        if "conv1.0.weight" in made.net.state_dict()
        else next(iter(made.net.state_dict().values())),
        next(iter(source.state_dict().values())),
    )
    assert made.net.get_classifier().out_features == 7


def test_weights_that_cannot_be_had_are_named(tmp_path):
    setup = Setup(7, 3, (0.1,) * 3, (1.0,) * 3, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(
        DataError,
        match=r"resnet18: weights cannot be loaded \(.*\); published as timm/resnet18.*: fetch them where there is a network",
    ):
        setup.network(ModelConfig(name="resnet18", pretrained=True), 0)
    with pytest.raises(DataError, match=r"weights from .*none\.safetensors cannot be loaded"):
        setup.network(ModelConfig(name="resnet18", pretrained=True, file=str(Path(tmp_path) / "none.safetensors")), 0)
