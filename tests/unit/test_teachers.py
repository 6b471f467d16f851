"""Teachers from files, from timm and as ensembles: what is loaded, and what is refused."""

import ast
import json
import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.model import ModelConfig
from kdrun.config.nodes import dump, from_nodes, teacher_of
from kdrun.config.teacher import TeacherConfig
from kdrun.config.weights import WeightsConfig
from kdrun.core.device import autocast
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.registry import registered
from kdrun.core.schema import build
from kdrun.methods.step import Setup
from kdrun.models.fit import Fit
from kdrun.models.network import load_network
from kdrun.models.weights import read_state
from kdrun.teachers.kind import make_teacher, untrained_teacher
from kdrun.teachers.teacher import Teacher
from tests.conftest import ROOT

SETUP = Setup(10, 1, (0.3,), (0.2,), train_target=torch.zeros(5, dtype=torch.int64))
PIXELS = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
MODEL = {"name": "resnet8", "args": {"width": 4}}


def spec(**keys) -> TeacherConfig:
    return teacher_of({"source": "file", "model": MODEL, **keys})


def network(seed=1):
    return SETUP.network(build(ModelConfig, MODEL, "m"), seed).eval()


def own_state():
    return dict(network().net.state_dict())


def published(prefix="module.", head="linear"):
    """Weights under the names of an old checkpoint."""
    state = own_state()
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
        (lambda p: p.write_bytes(b""), DataError, "not a readable file of weights"),
        (lambda p: p.write_bytes(b"<html>503 Service Unavailable</html>"), DataError, "not a readable file of weights"),
        (lambda p: p.mkdir(), DataError, "not a readable file of weights .*directory"),
        (lambda p: torch.save(torch.nn.Linear(2, 2), p), DataError, "would run its code"),
        (lambda p: torch.save([1, 2], p), DataError, "expected names and tensors, got a list"),
        (lambda p: torch.save({**own_state(), "epoch": 3}, p), DataError, "expected names and tensors, got 'epoch': int"),
        (lambda p: torch.save({**own_state(), 3: torch.zeros(1)}, p), DataError, "expected names and tensors, got 3: Tensor"),
        (lambda p: torch.save({**own_state(), "ema.decay": torch.zeros(1)}, p), ConfigError, r"fit resnet8: 1 too many, e\.g\. ema\.decay"),
        (lambda p: torch.save({**own_state(), "fc.bias": torch.zeros(10, dtype=torch.int8)}, p), DataError, r"fc\.bias is torch\.int8, expected dense floating"),
        (lambda p: torch.save({**own_state(), "fc.bias": torch.zeros(10, dtype=torch.complex64)}, p), DataError, r"fc\.bias is torch\.complex64"),
        (lambda p: torch.save({**own_state(), "fc.bias": torch.ones(10).to_sparse()}, p), DataError, r"fc\.bias is torch\.sparse_coo"),
        (lambda p: torch.save({**own_state(), "fc.bias": torch.zeros(10, device="meta")}, p), DataError, r"fc\.bias is without content"),
        (lambda p: torch.save({**own_state(), "fc.bias": torch.full((10,), torch.nan)}, p), DataError, r"fc\.bias holds nan"),
        (lambda p: torch.save(published(), p), ConfigError, r"missing, e\.g\. conv1\.weight; .* too many, e\.g\. module\.conv1\.weight; see teacher\.strip_prefix"),
        (lambda p: torch.save({k: v for k, v in network().net.state_dict().items() if not k.startswith("fc")}, p), ConfigError, r"2 missing, e\.g\. fc\.weight"),
        (lambda p: torch.save({**network().net.state_dict(), "fc.weight": torch.zeros(100, 16)}, p), ConfigError, r"fc\.weight is \(100, 16\), the network for this dataset has \(10, 16\)"),
    ],
    ids=[
        "pickle", "attack inside", "empty", "page", "folder", "whole module", "list", "number", "name", "extra", "int8",
        "complex", "sparse", "meta", "nan", "names", "missing", "classes",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_unfit_files_are_refused_before_anything_runs(tmp_path, monkeypatch, write, error, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.th"
    write(path)
    with torch.device("meta"), pytest.raises(error, match=rf"teacher\.path: .*{message}"):
        untrained_teacher(spec(path=str(path)), SETUP)
    assert not (tmp_path / "attacked").exists()


SAVE = {
    "safetensors": save_file,
    "zip": torch.save,
    "legacy": partial(torch.save, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("length", [5, 200, 6000, -100])
def test_a_truncated_file(tmp_path, kind, length):
    path = tmp_path / "t.bin"
    SAVE[kind](own_state(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"key: t\.bin: (not a readable file of weights|.* or is damaged)"):
        read_state(path, "key: t.bin")


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("name", ["t.safetensors", "t.pt", "t"])
def test_the_content_tells_the_format_not_the_name(tmp_path, kind, name):
    SAVE[kind](own_state(), tmp_path / name)
    read = read_state(tmp_path / name, "")
    assert read.keys() == own_state().keys()
    assert torch.equal(read["fc.weight"], own_state()["fc.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_taken(tmp_path, dtype):
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in own_state().items()}
    torch.save(state, tmp_path / "t.pt")
    made = make_teacher(spec(path=str(tmp_path / "t.pt")), SETUP, {})
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    torch.testing.assert_close(made.eval()(PIXELS).logits, network()(PIXELS).logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("more", "keys", "message"),
    [
        ("module.fc.bias", {"strip_prefix": "module."}, r"fc\.bias and module\.fc\.bias both become fc\.bias"),
        ("head.bias", {"rename": {"head": "fc"}}, r"fc\.bias and head\.bias both become fc\.bias"),
    ],
)
def test_two_weights_of_one_name_are_refused(tmp_path, more, keys, message):
    torch.save({**own_state(), more: torch.zeros(10)}, tmp_path / "t.pt")
    with pytest.raises(ConfigError, match=rf"teacher\.path: .*t\.pt: {message}; see teacher\.strip_prefix"):
        untrained_teacher(spec(path=str(tmp_path / "t.pt"), **keys), SETUP)


def test_the_bad_member_of_an_ensemble_is_named(tmp_path):
    torch.save(own_state(), tmp_path / "a.pt")
    torch.save({**own_state(), "fc.bias": torch.zeros(7)}, tmp_path / "b.pt")
    members = [{"source": "file", "model": MODEL, "path": str(tmp_path / name)} for name in ("a.pt", "b.pt")]
    ensemble = teacher_of({"source": "ensemble", "members": members})
    with pytest.raises(
        ConfigError, match=r"teacher\.members\.1\.path: .*b\.pt does not fit resnet8: fc\.bias is \(7,\)"
    ):
        untrained_teacher(ensemble, SETUP)


def test_rename_takes_whole_parts_only(tmp_path):
    names = ["m.linear.weight", "m.linear2.bias", "m.linear"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "t")
    reading = WeightsConfig(strip_prefix="m.", rename={"linear": "fc"})
    got = Fit(reading, {}, "", "teacher").read(tmp_path / "t").state
    assert sorted(got) == ["fc", "fc.weight", "linear2.bias"]


def test_ensemble_is_the_mean_of_the_probabilities(tmp_path):
    members = []
    for seed in (1, 2, 3):
        torch.save(network(seed).net.state_dict(), tmp_path / f"{seed}.pt")
        members.append({"source": "file", "model": MODEL, "path": str(tmp_path / f"{seed}.pt")})
    made = make_teacher(teacher_of({"source": "ensemble", "members": members}), SETUP, {})
    made.eval()
    mean = torch.stack([network(seed)(PIXELS).logits.softmax(1) for seed in (1, 2, 3)]).mean(0)
    torch.testing.assert_close(made(PIXELS).logits.softmax(1), mean)
    with pytest.raises(ConfigError, match="has no feature 'prelogits'"):
        made(PIXELS, ("prelogits",))


def test_a_temperature_changes_how_sure_a_teacher_is_and_not_what_it_says(tmp_path):
    path = str(tmp_path / "1.pt")
    torch.save(network(1).net.state_dict(), path)
    plain = Teacher(make_teacher(spec(path=path), SETUP, {}))
    assert type(make_teacher(spec(path=path, temperature=1), SETUP, {})) is type(network())
    for temperature in (0.25, 4):
        tempered = Teacher(make_teacher(spec(path=path, temperature=temperature), SETUP, {}))
        out, whole = tempered(PIXELS, ("prelogits",)), plain(PIXELS, ("prelogits",))
        assert torch.equal(out.logits, whole.logits / temperature)
        assert torch.equal(out.features["prelogits"], whole.features["prelogits"])
        assert torch.equal(tempered.mc_samples(PIXELS, 2, 0), plain.mc_samples(PIXELS, 2, 0) / temperature)
        assert (tempered.dims, tempered.name) == (plain.dims, plain.name)
    members = [{"source": "file", "model": MODEL, "path": path, "temperature": t} for t in (1, 2)]
    made = make_teacher(teacher_of({"source": "ensemble", "members": members}), SETUP, {}).eval()
    logits = plain(PIXELS).logits
    torch.testing.assert_close(made(PIXELS).logits.softmax(1), (logits.softmax(1) + (logits / 2).softmax(1)) / 2)


@pytest.mark.parametrize("around", ["fp32", "bf16"])
@pytest.mark.parametrize("own", ["fp32", "bf16"])
def test_a_teacher_has_a_precision_of_its_own_in_training_alone(around, own):
    cpu = torch.device("cpu")
    plain = Teacher(network())
    expected = {}
    for precision in ("fp32", "bf16"):
        with autocast(cpu, precision):
            expected[precision] = plain(PIXELS, ("stage1", "prelogits"))
    assert not torch.equal(expected["fp32"].logits, expected["bf16"].logits)
    teacher = Teacher(network(), own)
    with autocast(cpu, around):
        out, evaluated = teacher(PIXELS, ("stage1", "prelogits")), teacher.predict(PIXELS)["teacher"]
        samples = teacher.mc_samples(PIXELS, 1, 0)
    assert torch.equal(out.logits, expected[own].logits)
    assert torch.equal(samples[0], expected[own].logits)
    assert torch.equal(evaluated, expected[around].logits)
    for name, feature in out.features.items():
        assert feature.dtype == torch.float32
        assert torch.equal(feature, expected[own].features[name].float())


def test_a_teachers_precision_is_in_the_key_where_it_is_not_the_runs_own():
    def key(*words):
        with Composer() as composer:
            return run_key(composer.typed(["loss=kd", "teacher=resnet20", "student=resnet8", *words]))

    half = "schedule.precision=bf16"
    assert key("teacher.precision=fp32") == key()
    assert key("teacher.precision=bf16") not in (key(), key(half))
    assert key("teacher.precision=bf16", half) == key(half)
    assert key("teacher.precision=fp32", half) not in (key(), key(half))
    assert key("method=supervised", "loss=ce", "teacher.precision=bf16") == key("method=supervised", "loss=ce")
    with pytest.raises(ConfigError, match=r"teacher.members.\*.precision: .* set teacher.precision instead"):
        teacher_of(
            {"source": "ensemble", "members": [{"source": "file", "model": MODEL, "path": "x", "precision": "bf16"}]}
        )


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_temperature_is_a_positive_number(value):
    with pytest.raises(ConfigError, match=r"teacher\.temperature: must be (greater than 0|a finite number), got"):
        spec(path="x", temperature=value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"source": "ensemble", "members": [], "model": None},
            r"teacher: an ensemble needs two teacher\.members or more, got 0",
        ),
        (
            {"members": [{"source": "none"}]},
            r"teacher\.members: not for source=file; source=ensemble and tip_adapter have it",
        ),
        ({"path": None}, r"teacher\.path: missing; a value is required"),
        ({"model": None, "path": "x"}, r"teacher\.model: missing; a value is required"),
    ],
)
def test_incomplete_teachers(keys, message):
    with pytest.raises(ConfigError, match=message):
        spec(**keys)


def test_a_key_of_another_kind_is_left_out_at_its_default_and_refused_otherwise():
    every = {name: field for cls in registered("teacher").values() for name, field in cls.Config.model_fields.items()}
    old = {name: f.get_default(call_default_factory=True) for name, f in every.items() if not f.is_required()}
    old = json.loads(json.dumps(old, default=lambda value: value.model_dump()))  # as records hold it
    assert {"members", "adapter", "rename", "mix", "schedule", "zeta"} <= set(old)
    for own in ({"path": "x"}, {"source": "train"}, {"source": "timm"}, {"source": "none", "model": None}):
        short = {"source": "file", "model": MODEL, **own}
        assert teacher_of({**old, **short}) == teacher_of(short)
    assert teacher_of({**old, "source": "none"}) == TeacherConfig()
    with pytest.raises(ConfigError) as found:
        teacher_of({"source": "train", "model": MODEL, "path": "x", "adapter": {"passes": 3}, "seed": -1})
    assert found.value.lines == [
        "teacher.path: not for source=train; source=file and open_clip have it",
        "teacher.adapter: not for source=train; source=tip_adapter has it",
    ]
    assert teacher_of({"source": "train", "model": MODEL, "adapter": {"passes": 10}}).model.name == "resnet8"
    members = [{"source": "file", "model": MODEL, "path": "x", **more} for more in ({}, {"zeta": 0.1})]
    with pytest.raises(ConfigError, match=r"^teacher\.members\.1\.zeta: not for source=file; .* have it$"):
        teacher_of({"source": "ensemble", "members": members})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sede": 1, "source": "train", "path": None}, r"teacher\.sede: unknown key; nearest: seed \(allowed: "),
        ({"source": "fil"}, r"teacher\.source: unknown teacher 'fil'; nearest: file \(allowed: .*tip_adapter, train"),
        ({"source": "ensemble", "model": None, "members": [{"source": "none"}, {}]}, r"teacher\.members\.0\.source: none is no teacher"),
        ({"source": "ensemble", "model": None, "members": [3, 4]}, r"teacher\.members\.0: expected a mapping with a source, got 3"),
    ],
)  # fmt: skip
def test_what_no_kind_takes(keys, message):
    with pytest.raises(ConfigError, match=message):
        spec(**keys)


PLUGIN = """
from kdrun.core.registry import register
from kdrun.teachers.train import TrainConfig, TrainedTeacher

class TwiceConfig(TrainConfig):
    times: int = 2

@register("teacher", "twice")
class Twice(TrainedTeacher):
    Config = TwiceConfig
"""


def test_a_kind_in_a_users_file_has_its_keys_and_counts_by_its_content(tmp_path):
    def composed(*more):
        with Composer() as composer:
            return composer.typed([f"plugins=[{path}]", "teacher=resnet8", *more])

    path = tmp_path / "twice.py"
    path.write_text(PLUGIN)
    config = composed("teacher.source=twice", "+teacher.times=3")
    assert config.teacher.times == 3
    assert run_key(from_nodes(dump(config))) == (key := run_key(config))
    [run] = config.method_class.requires(config).values()
    assert run.plugins == []  # an ordinary run
    with pytest.raises(ConfigError, match=r"teacher\.times: not for source=train; source=twice has it"):
        composed("+teacher.times=3")
    path.write_text(PLUGIN + "# edited")
    assert run_key(composed("teacher.source=twice", "+teacher.times=3")) != key
    with Composer() as composer, pytest.raises(ConfigError, match=r"teacher\.source: unknown teacher 'twice'"):
        composer.typed(["teacher=resnet8", "teacher.source=twice"])


def test_only_the_kinds_themselves_ask_what_a_source_is_called():
    """A comparison elsewhere would not know a kind that somebody adds."""
    found = []
    for path in [*(ROOT / "kdrun").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        if path.parent.name != "teachers":
            tree = ast.parse(path.read_text())
            found += [f"{path.relative_to(ROOT)}:{n.lineno}" for n in ast.walk(tree) if _compares_a_source(n)]
    assert not found
    for line in ("t.source == 'x'", "'x' != source", "t.source in ('x', y)", "t['source'] == 'x'", "t.get('source') == 'x'",
                 "match t.source:\n case 'x': pass", "{'x': 1}[t.source]", "t.source.startswith('x')"):  # fmt: skip
        assert any(_compares_a_source(node) for node in ast.walk(ast.parse(line))), line


def _compares_a_source(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        texts = any(isinstance(n, ast.Constant) and isinstance(n.value, str) for s in sides for n in ast.walk(s))
        return texts and any(map(_is_source, sides))
    if isinstance(node, ast.Match):
        return _is_source(node.subject)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Dict) and _is_source(node.slice)
    return isinstance(node, ast.Attribute) and node.attr in ("startswith", "endswith") and _is_source(node.value)


def _is_source(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr="source") | ast.Name(id="source") | ast.Subscript(slice=ast.Constant(value="source")):
            return True
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value="source"), *_]):
            return True
    return False


def test_a_timm_teacher_must_know_the_classes_and_have_weights():
    model = {"name": "resnet18", "pretrained": True}
    with pytest.raises(
        ConfigError, match=r"resnet18 was trained for 1000 classes, the dataset has 10; its head would be random"
    ):
        untrained_teacher(spec(source="timm", model=model), SETUP)
    with pytest.raises(ConfigError, match=r"source=timm needs published weights"):
        untrained_teacher(spec(source="timm", model={"name": "resnet18"}), SETUP)


def test_pretrained_weights_from_a_local_file_bring_their_normalisation(tmp_path, caplog):
    import timm

    setup = Setup(7, 3, (0.1, 0.1, 0.1), (1.0, 1.0, 1.0), train_target=torch.zeros(5, dtype=torch.int64))
    source = timm.create_model("test_resnet", num_classes=1000)
    save_file({**source.state_dict(), "more.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    place = str(tmp_path / "w.safetensors")
    with caplog.at_level("INFO"):
        made = setup.network(ModelConfig(name="test_resnet", pretrained=True, file=place), 0)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"test_resnet: {place} fills all but the classifier, which is new: 7 classes",
        f"test_resnet: {place} has 1 weights that the network has not, e.g. more.weight; they are left out",
    ]
    published_cfg = timm.get_pretrained_cfg("test_resnet")
    assert made.spec.mean == tuple(published_cfg.mean)
    assert torch.equal(
        made.net.state_dict()["conv1.0.weight"]
        if "conv1.0.weight" in made.net.state_dict()
        else next(iter(made.net.state_dict().values())),
        next(iter(source.state_dict().values())),
    )
    assert made.net.get_classifier().out_features == 7


def test_weights_without_a_classifier_are_those_of_a_network_with_a_new_head(tmp_path):
    """As DINO's ResNet-50 on ImageNet, whose classes are as many as those of timm's own weights."""
    import timm

    setup = Setup(1000, 3, (0.1,) * 3, (1.0,) * 3, train_target=torch.zeros(5, dtype=torch.int64))
    source = timm.create_model("test_resnet", num_classes=1000).state_dict()
    place = {"name": "test_resnet", "pretrained": True, "file": str(tmp_path / "w.pth")}
    torch.save({name: value for name, value in source.items() if not name.startswith("fc.")}, tmp_path / "w.pth")
    made = setup.network(ModelConfig(**place, new_head=True), 0)
    state = made.net.state_dict()
    assert all(torch.equal(state[name], value) == (name[:3] != "fc.") for name, value in source.items())
    made.save(tmp_path / "own.safetensors")
    assert torch.equal(load_network(tmp_path / "own.safetensors").net.fc.weight, made.net.fc.weight)
    with pytest.raises(DataError, match=r"w\.pth: not a file of its weights .*\(new_head=true takes a file without"):
        setup.network(ModelConfig(**place), 0)
    with pytest.raises(ConfigError, match=r"teacher\.model\.new_head: a frozen teacher would have a random classifier"):
        spec(source="timm", model={**place, "new_head": True})


def test_weights_that_cannot_be_had_are_named(tmp_path):
    setup = Setup(7, 3, (0.1,) * 3, (1.0,) * 3, train_target=torch.zeros(5, dtype=torch.int64))
    place = r"fetch model\.safetensors of timm/resnet18.* \(Hugging Face hub\) where there is a network"
    with pytest.raises(DataError, match=rf"resnet18: its published weights cannot be had \(.*\); {place}"):
        setup.network(ModelConfig(name="resnet18", pretrained=True), 0)
    with pytest.raises(DataError, match=r"resnet18: .*none\.safetensors: not a file of its weights"):
        setup.network(ModelConfig(name="resnet18", pretrained=True, file=str(Path(tmp_path) / "none.safetensors")), 0)


def test_weights_of_another_network_are_no_published_ones(tmp_path):
    setup = Setup(7, 3, (0.1,) * 3, (1.0,) * 3, train_target=torch.zeros(5, dtype=torch.int64))
    save_file({"fc.weight": torch.zeros(7, 16)}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"test_resnet: .*w\.safetensors lacks \d+ of its weights, e\.g\. conv1"):
        setup.network(ModelConfig(name="test_resnet", pretrained=True, file=str(tmp_path / "w.safetensors")), 0)
