"""The head of arXiv 2606.12171's students, networks of which only the head is trained, and the warm-up run of a head."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from kdrun import load
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.data.loader import Loader
from kdrun.methods.requires import head_warmup_runs
from kdrun.models.network import Network, build_network, load_network
from kdrun.runs.record import find_records
from kdrun.training.check import check
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import fit, make

NAMES = ["resnet8", "wrn_16_1", "test_resnet", "test_convnext", "test_vit", "test_efficientnet"]
MLP = "student.head=mlp"
WARM = [MLP, "student.head_warmup={epochs: 2, lr: 0.01}"]


def network(name="resnet8", **fields) -> Network:
    size = 160 if name.startswith("test_") else 32
    model = ModelConfig(name=name, size=size, **fields)
    return build_network(model, num_classes=7, in_chans=3, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)


def pixels(n=4):
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_the_mlp_head_takes_the_place_of_any_classifier(name, tmp_path):
    plain, net = network(name), network(name, head="mlp")
    head = net.net.get_classifier()
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head[0].in_features, head[0].out_features, head[0].bias) == (plain.dims["prelogits"], 256, None)
    assert (head[3].p, head[4].out_features) == (0.3, 7)
    assert net.dims == {**plain.dims, "prelogits": 256, "pooled": plain.dims["prelogits"]}
    assert sum(p.numel() for n, p in net.net.named_parameters() if n in dict(plain.net.named_parameters())) == (
        plain.num_params - sum(p.numel() for p in plain.net.get_classifier().parameters())
    )
    net.train()(pixels())
    net.eval()
    with torch.no_grad():
        out = net(pixels(), tuple(net.dims))
        assert torch.equal(F.linear(out.features["prelogits"], head[4].weight, head[4].bias), out.logits)
        assert torch.equal(head(out.features["pooled"]), out.logits)
        assert torch.equal(net(pixels()).logits, net(pixels(), ("prelogits",)).logits)
        net.save(tmp_path / "net.safetensors")
        again = load_network(tmp_path / "net.safetensors")
        assert again.spec == net.spec
        assert torch.equal(again(pixels()).logits, net(pixels()).logits)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("name", ["resnet8", "test_vit"])
def test_of_a_frozen_network_the_head_alone_learns(name, head):
    net = network(name, head=head, trainable="head").train()
    own = {id(p) for p in net.net.get_classifier().parameters()}
    assert {id(p) for p in net.parameters() if p.requires_grad} == own
    learned = {f"{n}.{k}" for n, m in net.net.named_modules() if m is net.net.get_classifier() for k in m.state_dict()}
    before = {k: v.clone() for k, v in net.net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(pixels()).logits.square().sum().backward()
        optimizer.step()
    changed = {k for k, v in net.net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == learned  # running statistics too: those of the head move, all others stay
    assert net.training
    assert not any(m.training for m in net.eval().modules())


def test_a_default_network_is_what_it_was():
    plain = network()
    assert all(p.requires_grad for p in plain.parameters())
    assert [m.training for m in plain.train().modules()] == [True] * len(list(plain.modules()))
    spec = {k: v for k, v in ModelConfig(name="resnet8").model_dump().items() if k not in ("head", "trainable")}
    assert ModelConfig.model_validate({k: v for k, v in spec.items() if k != "head_warmup"}) == ModelConfig(
        name="resnet8"
    )


@pytest.mark.parametrize("fields", [{}, {"head": "mlp"}, {"head": "hidden"}, {"trainable": "head"}], ids=str)
@pytest.mark.parametrize("name", ["resnet8", "test_efficientnet", "test_vit"])
def test_a_head_at_zero_is_the_same_network_that_says_nothing_yet_and_learns(name, fields, tmp_path):
    plain, zero = network(name, **fields), network(name, zero_head=True, **fields)
    differ = {k for k, v in plain.state_dict().items() if not torch.equal(v, zero.state_dict()[k])}
    last = zero.net.get_classifier() if fields.get("head") is None else zero.net.get_classifier()[-1]
    place = next(n for n, m in zero.named_modules() if m is last)
    assert f"{place}.weight" in differ <= {f"{place}.weight", f"{place}.bias"}
    assert (plain.eval()(pixels()).logits != 0).any()
    assert (zero.eval()(pixels()).logits == 0).all()
    zero.train()
    F.cross_entropy(zero(pixels()).logits, torch.arange(4)).backward()
    with torch.no_grad():
        last.weight -= last.weight.grad
    logits = zero.eval()(pixels()).logits
    assert (logits != 0).any()
    zero.save(tmp_path / "net.safetensors")
    assert torch.equal(load_network(tmp_path / "net.safetensors")(pixels()).logits, logits)  # of a file: as it was kept


def test_published_weights_of_other_classes_stay_under_a_head_at_zero(tmp_path):
    """By order too, from a file as PyTorch pickles it."""
    source = timm.create_model("test_efficientnet", num_classes=1000).state_dict()
    torch.save({f"_{k}": v for k, v in source.items()}, tmp_path / "w.pth")
    published = {"pretrained": True, "file": str(tmp_path / "w.pth"), "match": "order"}
    net = network("test_efficientnet", zero_head=True, **published).net
    heads = {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(v, source[k]) for k, v in net.state_dict().items() if k not in heads)
    assert not any(net.state_dict()[k].any() for k in heads)


def test_a_large_new_head_on_published_weights_is_told(tmp_path):
    """timm starts EfficientNets with up to 1/sqrt(classes), whatever their features; others with less."""
    for name, large in (("test_efficientnet", True), ("test_vit", False), ("test_resnet", False)):
        torch.save(timm.create_model(name, num_classes=1000).state_dict(), tmp_path / "w.pth")
        published = {"pretrained": True, "file": str(tmp_path / "w.pth")}
        told = network(name, **published).large_new_head
        assert (told is not None) == large
        assert told is None or 0.9 < told * 7**0.5 <= 1
        for quiet in ({}, {**published, "zero_head": True}, {**published, "trainable": "head"}):
            assert network(name, **quiet).large_new_head is None


def test_both_classifiers_of_a_deit_begin_at_zero():
    with torch.device("meta"):
        assert network("deit_tiny_distilled_patch16_224", zero_head=True).num_heads == 2
    made = network("resnet8")
    first, second = nn.Linear(2, 7), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 7, 1))
    made.net.get_classifier = lambda: (first, second)
    made._zero_head()
    assert not any(p.any() for p in (*first.parameters(), *second.parameters()))
    made.net.get_classifier = nn.Identity
    with pytest.raises(
        ConfigError, match=r"^resnet8: its classifier is no linear layer; set student\.zero_head to false"
    ):
        made._zero_head()


@pytest.mark.parametrize("fields", [{"head": "mlp"}, {"trainable": "head"}])
def test_a_classifier_that_is_no_single_layer_is_refused(fields):
    with torch.device("meta"), pytest.raises(ConfigError, match="its classifier is not one linear layer"):
        network("deit_tiny_distilled_patch16_224", **fields)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.head=big"], "student.head: 'big' is not allowed"),
        (["student.trainable=body"], "student.trainable: 'body' is not allowed"),
        (["student.head_warmup={epochs: 0}"], "student.head_warmup.epochs: must be greater than 0"),
        (["student.head_warmup={steps: 3}"], "student.head_warmup.steps: unknown key"),
        (
            ["teacher=timm", "teacher.model.name=resnet10t", "teacher.model.head=mlp"],
            "teacher.model.head: timm's published weights are of a linear head",
        ),
        (["student.zero_head=maybe"], "student.zero_head: "),
    ],
)
def test_mistakes(overrides, message):
    with Composer() as composer, pytest.raises(ConfigError, match=message):
        composer.typed(overrides)


def test_what_a_warm_up_lacks_is_said_before_anything_runs():
    with Composer() as composer:
        config = composer.typed([*FAST, "method=supervised", "student.head_warmup={optimizer: adamm}"])
        with pytest.raises(ConfigError, match=r"head_warmup: schedule\.optimizer: unknown optimizer 'adamm'"):
            check(config)
        warm = "{name: resnet8, head_warmup: {epochs: 1}}"
        twins = composer.typed(["method=peer_distill", f"students=[{warm},{warm}]"])
        with pytest.raises(ConfigError, match="two of them have the same head_warmup run"):
            check(twins)
        others = composer.typed(["method=peer_distill", f"students=[{warm},resnet8]"])
        assert list(head_warmup_runs(others)) == ["head_warmup_1"]


def test_a_teacher_that_is_not_trained_has_no_warm_up_in_the_key():
    with Composer() as composer:
        given = ["teacher=timm", "teacher.model.name=resnet10t"]
        plain = composer.typed(given)
        warm = composer.typed([*given, "teacher.model.head_warmup={}", "teacher.model.trainable=head"])
        assert run_key(plain) == run_key(warm)
        trained = composer.typed(["teacher.model.head_warmup={epochs: 3}"])
        teacher = trained.method_class.requires(trained)["teacher"]
        assert teacher.method_class.requires(teacher)["head_warmup"].schedule.epochs == 3


def test_methods_train_with_either_head_and_with_a_frozen_body():
    for overrides in ([MLP], ["student.trainable=head"], [MLP, "student.trainable=head", "schedule.ema_decay=0.9"]):
        config, method, loader, _ = make("distill", *overrides)
        losses = fit(config, method, loader, 0, 3)
        assert losses[0] != losses[1]


# ------------------------------------------------------------------------------------------------------- whole runs

RUN = [*FAST, *WARM, "loss=kd", *TEACHER, "execution.checkpoint_every_steps=4"]


def runs_of(outputs):
    return {record["key"]: (directory, record) for directory, record in find_records(outputs)}


@pytest.mark.slow
def test_a_student_starts_from_its_warm_up_which_others_share(train, outputs):
    assert train(*RUN, "schedule.steps=1", "schedule.lr=1e-9") == 0
    found = runs_of(outputs)
    [(directory, record)] = [run for run in found.values() if run[1]["method"] == "distill"]
    assert record["requires"].keys() == {"head_warmup", "teacher"}
    warm_dir, warm = found[record["requires"]["head_warmup"]]
    assert (warm["method"], warm["steps"], warm["seed"]) == ("supervised", round(2 * 50 / 16), 0)
    start, first = (load_file(place / "student.safetensors") for place in (warm_dir, directory))
    fresh = make("supervised", MLP)[1].networks()["student"].net.state_dict()
    for name, value in start.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(first[name], value, atol=1e-6, rtol=0)  # one step of next to nothing
        if not name.startswith("fc."):
            assert torch.equal(value, fresh[name])  # frozen, batch statistics too
    assert not torch.equal(start["fc.4.weight"], fresh["fc.4.weight"])
    network = load(directory)
    assert (network.spec.model["head"], network.dims["prelogits"]) == ("mlp", 256)

    assert train(*RUN, "schedule.steps=2", "loss.kd.temperature=2", "method=mixup_distill", "loss=kd") == 0
    assert (
        len([1 for _, other in runs_of(outputs).values() if other["method"] == "supervised"]) == 3
    )  # a longer teacher
    assert {r["requires"].get("head_warmup") for _, r in runs_of(outputs).values()} == {None, warm["key"]}


@pytest.mark.slow
def test_a_run_with_a_warm_up_that_broke_off_ends_as_if_it_had_not(train, outputs, monkeypatch):
    run = [*FAST, *WARM, "method=supervised", "execution.checkpoint_every_steps=4", "schedule.steps=8"]
    assert train(*run) == 0
    [(whole, _)] = [x for x in find_records(outputs) if x[1]["requires"]]
    expected, metrics = (whole / "student.safetensors").read_bytes(), (whole / "metrics.jsonl").read_text()
    for file in whole.iterdir():
        if file.is_file():
            file.unlink()
    plain = Loader.batch

    def broken(self, step):
        if step == 6:
            raise KdrunError("broken off")
        return plain(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", broken)
        assert train(*run) == 1
    assert (whole / "checkpoint" / "last.pt").exists()
    assert train(*run) == 0
    assert (whole / "student.safetensors").read_bytes() == expected
    assert (whole / "metrics.jsonl").read_text() == metrics


def test_several_students_with_a_warm_up_each():
    students = "students=[{name: resnet8, args: {width: 4}, head_warmup: {epochs: 1}}, {name: wrn_16_1}]"
    with pytest.raises(ConfigError, match="its `requires` leaves out the head_warmup_1 of a student"):
        make("peer_distill", students)
    with Composer() as composer:
        config = composer.typed(["method=peer_distill", *FAST, *TEACHER, students])
    assert list(config.method_class.requires(config)) == ["head_warmup_1", "teacher"]
