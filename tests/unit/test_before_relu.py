"""Features before a stage's last ReLU, and the losses that want them: AB, OFD, FSP, CAT-KD, ReviewKD's targets."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.losses.ab import ab
from kdrun.losses.catkd import activation_maps, catkd
from kdrun.losses.fsp import flow, fsp
from kdrun.losses.ofd import margins, ofd
from kdrun.losses.set import LossSet
from kdrun.losses.term import Pair, TermSpec
from kdrun.methods.step import Context
from kdrun.models.interface import last_activations
from kdrun.models.network import build_network
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Tempered
from kdrun.training.accumulation import _in_chunks
from kdrun.training.check import check
from kdrun.training.rates import Ramps
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import fit, make
from tests.unit.test_feature_losses import LABELS
from tests.unit.test_later_losses import FS, FT

NETWORKS = [
    "resnet8",
    "resnet50_cifar",
    "wrn_16_2",
    "wrn_28_2",
    "vgg8_cifar",
    "shufflenetv1",
    "shufflenetv2",
    "resnet18",
    "resnet26",
]


def network(name, classes=3, **args):
    model = ModelConfig(name=name, args=args)
    return build_network(model, num_classes=classes, in_chans=3, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)


def images(n=2, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def befores(net):
    return [name for name in net.dims if name.startswith("pre") and name != "prelogits"]


# ---------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stage_is_the_activation_of_what_stands_before_it_and_of_wide_resnets_that_is_the_next_normalization(name):
    net = network(name, **{"zero_init_last": False} if name in ("resnet18", "resnet26") else {}).train()
    given = net(images(), tuple(net.dims)).features
    assert befores(net) == [f"pre{i + 1}" for i in range(len(net.net.feature_info))]
    for k, before in enumerate(befores(net)):
        stage = given[before.replace("pre", "stage")]
        if name.startswith("wrn"):
            norms = [*(getattr(net.net, f"layer{i}")[0].bn1 for i in (2, 3)), net.net.bn1]
            stage = copy.deepcopy(norms[k]).train()(stage)
            assert torch.equal(given[before], stage)
        else:
            assert torch.equal(given[before].relu(), stage)
            assert (given[before] < 0).any()


def test_the_stem_is_what_goes_into_the_first_stage():
    net = network("resnet8")
    assert torch.equal(net(images(), ("stem",)).features["stem"], net.net.stem(net.adapt(images())))
    assert "stem" not in network("vgg8_cifar").dims  # that is the image
    assert "stem" not in network("resnet18").dims  # there it is stage1


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "shufflenetv2", "resnet18"])
def test_copies_and_recomputed_parts_give_what_the_network_gives_and_keep_nothing(name):
    net = network(name).train()
    asked = (befores(net)[-1], "prelogits")
    twin, chunked = copy.deepcopy(net), copy.deepcopy(net)
    _in_chunks(chunked, 1)
    grads = []
    for one in (net, twin, chunked):
        out = one(images(), asked)
        sum(value.square().sum() for value in out.features.values()).backward()
        grads.append(torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]))
        assert one._seen is None
        assert set(out.features) == set(asked)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_a_compiled_network_gives_it(one_thread):
    net = network("resnet18").eval()
    asked = ("pre2", "pre5", "stage5")
    with torch.no_grad():
        expected = net(images(), asked)
        compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
        found = compiled(images(), asked)
    for name in asked:
        assert torch.equal(found.features[name], expected.features[name])


def test_a_feature_that_nobody_asks_for_is_not_kept(monkeypatch):
    net = network("resnet8")
    kept = []
    monkeypatch.setattr(net, "_seen", None)
    net.net.layer1[0].act2.register_forward_pre_hook(lambda *_: kept.append(dict(net._seen or {})))
    net(images())
    net(images(), ("prelogits", "stage1"))
    assert kept == [{}, {}]


def test_inner_names_of_weights_are_as_before():
    """Checkpoints and published weights have these names: activations have no state."""
    names = {name.rpartition(".")[0] for name in network("shufflenetv2").net.state_dict()}
    assert {"layer1.0.right.3.1", "layer1.1.branch.3.0"} <= names
    assert not [name for name in names if "act" in name]


class Odd(nn.Module):
    def __init__(self, **told):
        super().__init__()
        self.feature_info = [{"num_chs": 4, **told}]
        self.act, self.norm, self.other = nn.ReLU(), nn.BatchNorm2d(4), nn.BatchNorm2d(2)


def test_what_an_author_tells_of_a_network_is_taken_and_what_is_not_there_is_refused():
    net = Odd(act="act", norm="norm")
    assert last_activations(net, "odd") == {"pre1": (net.act, net.norm)}
    assert last_activations(Odd(), "odd") == {}
    assert last_activations(Odd(act="act", norm="other"), "odd")["pre1"][1] is None  # not of all channels
    with pytest.raises(ConfigError, match=r"odd: feature_info\[0\]: .*act9"):
        last_activations(Odd(act="act9"), "odd")


def test_the_normalization_before_it_is_told():
    net = network("resnet8")
    assert {name: [x.data_ptr() for x in pair] for name, pair in net.norms.items()} == {
        f"pre{k}": [p.data_ptr() for p in getattr(net.net, f"layer{k}")[-1].bn2.parameters()] for k in (1, 2, 3)
    }
    wide = network("wrn_16_2")
    assert wide.norms["pre1"][0] is wide.net.layer2[0].bn1.weight
    assert wide.norms["pre3"][0] is wide.net.bn1.weight
    assert Teacher(Tempered(net, 2.0)).network.norms.keys() == net.norms.keys()
    assert not network("shufflenetv2").norms  # of half the channels
    assert not network("mobilenetv2_half").norms


# ------------------------------------------------------------------------------------------------- authors' values

WEIGHT, BIAS = torch.tensor([1, 0.5], dtype=torch.float64), torch.tensor([0, 0.2], dtype=torch.float64)
MARGINS = [-0.797884560802865, -0.334378085872811]
GOLDEN = {
    "ab": (lambda: 3 / 1000 * ab(FS, FT).mean(), 0.05535),
    "fsp": (lambda: fsp((FS, FT), (FT, FS)).mean(), 0.0071078125),
    "ofd": (lambda: ofd(FS, FT, margins(WEIGHT, BIAS)).sum(), 26.2634566706224),
    "catkd, normalised": (lambda: catkd(FS, FT, normalize=True).mean(), 0.597592615709846),
    "catkd": (lambda: catkd(FS, FT).mean(), 1.98875),
    "catkd, one position": (lambda: catkd(*(F.adaptive_avg_pool2d(x, 1) for x in (FS, FT))).mean(), 0.0934375),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_values(name):
    value, expected = GOLDEN[name]
    assert value().item() == pytest.approx(expected, rel=1e-12)


def test_the_authors_margins():
    assert margins(WEIGHT, BIAS).tolist() == pytest.approx(MARGINS, rel=1e-12)
    assert margins(-WEIGHT, BIAS).tolist() == pytest.approx(MARGINS, rel=1e-12)


# ------------------------------------------------------------------------------------------------------------- by hand


def test_margins_by_hand():
    """Hardly ever negative: three deviations below 0, whatever the mean. No deviation: the mean, where that is below 0."""
    found = margins(torch.tensor([0.5, 0.0, 1.0]), torch.tensor([2.0, -1.0, -30.0]))
    assert found.tolist() == pytest.approx([-1.5, -1.0, -30.0])
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).double() * 0.7 + 0.3
    assert margins(torch.tensor([0.7]), torch.tensor([0.3])).item() == pytest.approx(x[x < 0].mean().item(), abs=2e-3)


def test_ab_by_hand():
    """Margin 1. Wanted below -1: at -2 nothing, at 0.5 1.5^2. Wanted above 1: at 2 nothing, at -1 2^2."""
    student = torch.tensor([-2.0, 0.5, 2.0, -1.0]).view(1, 1, 2, 2)
    teacher = torch.tensor([-5.0, 0.0, 0.1, 9.0]).view(1, 1, 2, 2)
    assert ab(student, teacher).tolist() == [2.25 + 4]


def test_ofd_by_hand():
    """Margin -1. t > 0: always; t < 0: where the student is above max(t, -1)."""
    student = torch.tensor([0.0, -0.25, -2.0, -0.5]).view(1, 1, 2, 2)
    teacher = torch.tensor([2.0, -0.5, -0.5, -7.0]).view(1, 1, 2, 2)
    assert ofd(student, teacher, torch.tensor([-1.0])).tolist() == [4 + 0.0625 + 0 + 0.25]


def test_flow_by_hand():
    """Channel a of the first map beside channel b of the second, which is half as large: the first is pooled."""
    before = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(1, 1, 2, 2)
    after = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    assert flow(before, after).tolist() == [[[8.0], [-4.0]]]
    assert fsp((before, after), (before, torch.zeros(1, 2, 1, 1))).tolist() == [(64 + 16) / 2]


def test_activation_maps_by_hand_are_the_classifiers_at_each_position_without_bias():
    linear = nn.Linear(2, 3).double()
    seen = activation_maps(FS, linear.forward, 2)
    torch.testing.assert_close(seen, F.conv2d(FS, linear.weight[:, :, None, None]))
    logits = seen.mean((2, 3)) + linear.bias
    torch.testing.assert_close(logits, linear(FS.mean((2, 3))))
    torch.testing.assert_close(activation_maps(FS, linear.forward, 1), seen.mean((2, 3), keepdim=True))


# ---------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize(
    "loss", [ab, lambda s, t: ofd(s, t, torch.tensor([-0.5, -0.2])), catkd, lambda s, t: fsp((s, s), (t, t))]
)
def test_gradient_to_the_student_only_and_right(loss):
    student, teacher = FS.clone().requires_grad_(), FT.clone()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))
    assert loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
    assert loss(student, teacher).shape == (2,)


def test_of_the_teacher_ab_sees_the_signs_alone():
    assert torch.equal(ab(FS, FT), ab(FS, 1e3 * FT))


def test_below_its_margin_ofd_does_not_ask_how_far():
    low = FS - 10
    assert torch.equal(ofd(low, -FT.abs() - 1, torch.tensor([-0.5, -0.5])), torch.zeros(2).double())


# --------------------------------------------------------------------------------------------------------------- terms


def term(name, student, teacher, **fields):
    config = lookup("loss", name, name).Config(name=name, **fields)
    spec = TermSpec(
        3, len(LABELS), student.dims, teacher.dims, LABELS, teacher.linear_classifier, student.linear_classifier,
        student_reductions=student.reductions, teacher_reductions=teacher.reductions, teacher_norms=teacher.norms,
    )  # fmt: skip
    return LossSet({name: config}, 0, spec).terms[name]


def given(made, student, teacher, side=16):
    with torch.no_grad():
        taught = teacher.eval()(images(2, side), made.needed.of_teacher)
    return Pair(student.train()(images(2, side), made.needed.features), taught, None, torch.arange(2), 0.5, torch.rand)


SAME = ("resnet14", "resnet8")
CROSS = {
    "ab": ("resnet14", "shufflenetv1"), "ofd": ("wrn_16_2", "shufflenetv2"), "fsp": SAME,
    "catkd": ("vgg8_cifar", "mobilenetv2_half"), "reviewkd": ("wrn_16_2", "mobilenetv2_half"),
}  # fmt: skip


@pytest.mark.parametrize("name", CROSS)
@pytest.mark.parametrize("same", [True, False])
def test_a_term_trains_the_student_and_all_that_is_its_own(name, same):
    teacher, student = (network(one) for one in (SAME if same else CROSS[name]))
    made = term(name, student, teacher, **({"targets": "pre"} if name == "reviewkd" else {}))
    pair = given(made, student, teacher)
    value = made(pair)
    assert value.shape == (2,)
    value.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())
    assert next(student.parameters()).grad is not None
    assert all(p.grad is None for p in teacher.parameters())


def test_where_shapes_are_equal_ab_has_no_connector_and_halves_the_weight_of_each_earlier_stage():
    teacher, student = network("resnet14"), network("resnet8")
    made = term("ab", student, teacher)
    assert not list(made.parameters())
    pair = given(made, student, teacher)
    s, t = pair.student.features, pair.teacher.features
    expected = ab(s["pre1"], t["pre1"]) / 4 + ab(s["pre2"], t["pre2"]) / 2 + ab(s["pre3"], t["pre3"])
    torch.testing.assert_close(made(pair), expected)


def test_connectors_of_ab_bring_the_student_to_the_teachers_size():
    half = term("ab", network("shufflenetv1"), network("resnet14"))
    assert [type(one[0]) for one in half.connectors] == [nn.ConvTranspose2d] * 3
    twice = term("ab", network("resnet8"), network("shufflenetv1"))
    assert [one[0].stride for one in twice.connectors] == [(2, 2)] * 3
    with pytest.raises(ConfigError, match="a connector is for maps of which one is at most twice as large"):
        term("ab", network("resnet8"), network("resnet14"), features=["stage1"], teacher_features=["stage3"])


def test_the_margins_are_those_of_the_teacher_and_stay():
    teacher, student = network("resnet14"), network("resnet8")
    with torch.no_grad():
        for weight, bias in teacher.norms.values():
            weight.uniform_(0.1, 2), bias.uniform_(-1, 1)
    made = term("ofd", student, teacher)
    for k, pair in enumerate(teacher.norms.values()):
        torch.testing.assert_close(made.get_buffer(f"margin{k + 1}"), margins(*pair).float())
    assert {name for name in made.state_dict() if "margin" in name} == {"margin1", "margin2", "margin3"}
    assert [one[0].weight.std().item() for one in made.connectors] == pytest.approx(
        [math.sqrt(2 / n) for n in (16, 32, 64)], rel=0.2
    )


def test_fsp_looks_at_the_stem_and_all_stages():
    assert term("fsp", network("resnet8"), network("resnet14")).needed.features == (
        "stem",
        "stage1",
        "stage2",
        "stage3",
    )
    vgg = term("fsp", network("vgg8_cifar"), network("vgg13_cifar"))
    assert vgg.needed.features == vgg.needed.of_teacher == tuple(f"stage{k}" for k in range(1, 6))
    assert term("fsp", network("resnet18"), network("resnet18")).needed.features[0] == "stage1"


def test_reviewkd_takes_its_targets_before_or_behind_the_last_relu():
    teacher, student = network("resnet14"), network("resnet8")
    found = {targets: term("reviewkd", student, teacher, targets=targets).needed for targets in ("pre", "post")}
    assert found["pre"].features == found["post"].features == ("stage1", "stage2", "stage3", "prelogits")
    assert found["pre"].of_teacher == ("pre1", "pre2", "pre3", "prelogits")
    assert found["post"].of_teacher == found["post"].features
    assert term("reviewkd", student, teacher).config.targets == "post"  # keys of runs that are finished stay


def loss_of(name):
    return lambda student, teacher, **fields: term(name, network(student), network(teacher), **fields)


GIVES = "it gives stage1, stage2, stage3, stage4, prelogits, map, stem"
REFUSED = {
    "a linear bottleneck, student": (lambda: loss_of("ab")("mobilenetv2_half", "vgg8_cifar"), f"loss.ab: the student gives no pre1; {GIVES}"),
    "a linear bottleneck, teacher": (lambda: loss_of("ofd")("vgg8_cifar", "mobilenetv2_half"), f"loss.ofd: the teacher gives no pre1; {GIVES}"),
    "targets": (lambda: loss_of("reviewkd")("resnet8", "mobilenetv2_half", targets="pre"), "loss.reviewkd: the teacher gives no pre2, its stage2 before the last ReLU, and targets is pre; set it to post: loss.reviewkd.targets=post"),
    "half a normalization": (lambda: loss_of("ofd")("resnet8", "shufflenetv2"), "loss.ofd: ofd needs the teacher's batch normalization before the last ReLU of a stage, and its pre1 has none of all channels; choose another teacher"),
    "other channels": (lambda: loss_of("fsp")("wrn_16_1", "wrn_16_2"), "loss.fsp: fsp needs as many channels in both networks, and the student's stage1 has 16, the teacher's stage1 32; choose another pair, or another loss"),
    "no map": (lambda: loss_of("catkd")("resnet8", "mobilenetv3_small_050"), "loss.catkd: the teacher gives no map; it gives"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case):
    make_it, line = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        make_it()
    (found,) = caught.value.lines
    assert found.startswith(line)


def test_one_map_is_no_flow():
    with pytest.raises(ValueError, match="features"):
        term("fsp", network("resnet8"), network("resnet14"), features=["stage1"])


@pytest.mark.parametrize("loss", ["ab", "ofd", "catkd", "reviewkd"])
def test_runs_are_checked_without_memory_and_take_graphs(loss):
    with Composer() as composer:
        check(
            composer.job(["method=distill", *FAST, *TEACHER, f"loss={loss}", "schedule.graph=true", "views=standard"])
        )


# ----------------------------------------------------------------------------------------------------------- two stages

STAGES = [
    "+ramps.a={key: loss.ab.weight, kind: step, start: 1, end: 0, until_progress: 0.5}",
    "+ramps.b={key: loss.ce.weight, kind: step, start: 0, end: 1, until_progress: 0.5}",
]


def test_a_weight_may_begin_at_0_and_the_other_end_there():
    config, method, loader, _ = make("distill", "loss=ab", *STAGES)
    for step, (first, then) in ((9, (True, False)), (10, (False, True))):
        context = Context(0, step, 20, torch.device("cpu"), Ramps(config.ramps).factors(step / 20))
        losses = method(loader.batch(step), context).losses
        assert (bool(losses["ab"] > 0), bool(losses["ce"] > 0)) == (first, then)
        method.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert bool(method.students["student"].net.fc.weight.grad.any()) == then
        assert bool(method.students["student"].net.conv1.weight.grad.any())


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_the_two_stages_of_an_experiment_meet_after_30_epochs_and_share_the_teacher_of_the_other_losses(name):
    with Composer() as composer:
        job, plain = (composer.job([f"experiment={one}"]) for one in (f"kd/{name}", "ttm/resnet32x4_resnet8x4"))
    clock = job.config.schedule.clock(50_000)
    assert (clock.total_steps, clock.steps_per_epoch) == (270 * 782, 782)
    last, first = (Ramps(job.config.ramps).factors((30 * 782 + k) / clock.total_steps) for k in (-1, 0))
    assert last == {f"loss.{name}.weight": 1, "loss.ce.weight": 0}
    assert first == {f"loss.{name}.weight": 0, "loss.ce.weight": 1}
    assert run_key(job.requires["teacher"].config) == run_key(plain.requires["teacher"].config)


@pytest.mark.parametrize("loss", ["ofd", "ab"])
def test_a_run_goes_on_from_a_checkpoint(loss):
    whole = fit(*make("distill", f"loss={loss}", "schedule.lr=0.001")[:3], 0, 4)
    assert all(math.isfinite(value) for value in whole)
    first, second = (make("distill", f"loss={loss}", "schedule.lr=0.001") for _ in range(2))
    second[1].load_state_dict(first[1].state_dict())
    assert fit(*second[:3], 0, 4) == whole
