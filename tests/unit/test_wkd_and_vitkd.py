"""Norm and direction, Wasserstein distances, ViTKD: the authors' values, slow references, and what their terms keep."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.losses.decoupled import nkd
from kdrun.losses.nd import nd
from kdrun.losses.set import LossSet
from kdrun.losses.term import Pair, TermSpec
from kdrun.losses.vitkd import masked, mimicking
from kdrun.losses.wkd_feature import moments, wkd_feature
from kdrun.losses.wkd_logit import sinkhorn, wkd_logit
from kdrun.methods.step import Context
from kdrun.models.network import build_network
from kdrun.models.output import Output
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.zero_shot import ZeroShot
from kdrun.training.assembly import Assembly
from kdrun.training.rates import Ramps
from kdrun.training.rehearsal import rehearse
from kdrun.training.statistics import AskedTeacher
from tests.conftest import FAST, TEACHER
from tests.contract.test_methods import VITS, ctx
from tests.each import each


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


# What the authors' functions gave, once.
ZS, ZT, Y = doubles([1, 2, 0.5], [0.2, -0.3, 1.5]), doubles([0.5, 3, -1], [1, 0, 2]), torch.tensor([1, 0])
FS = doubles(0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, -0.9, 1, 1.1, -1.2, 1.3, 1.4, -1.5, 1.6).view(2, 2, 2, 2)
FT = doubles(0.2, 0.1, -0.4, 0.3, -0.5, 0.6, 0.9, -0.7, 1, -0.8, 1.2, 0.5, 1.1, -1.3, 1.4, 0.6).view(2, 2, 2, 2)
COST = doubles([0, 0.4, 0.9], [0.4, 0, 0.6], [0.9, 0.6, 0])


def test_what_the_authors_functions_give():
    centers = F.normalize(doubles([1, 0, 2], [0, 2, 1]))
    assert nd(ZS, ZT, centers[Y]).mean().item() == pytest.approx(0.365706366903690, rel=1e-13)
    start = torch.full_like(ZS, 1 / 3)
    plain = sinkhorn((ZS / 4).softmax(1), (ZT / 4).softmax(1), start, COST, 0.05, 10)
    assert plain.mean().item() == pytest.approx(0.00151090108, rel=1e-8)
    target, others = nkd(ZS, ZT, Y, 0.0, 1.0).mean().item(), wkd_logit(ZS, ZT, Y, COST, 4, 0.05, 10).mean().item()
    assert target == pytest.approx(0.414508175352264, rel=1e-13)
    assert target + 2 * others == pytest.approx(0.414512866309, rel=1e-12)
    spread = wkd_feature(FS, FT, 0.0, 1).mean().item()
    assert spread == pytest.approx(0.096778010356537, rel=1e-13)
    assert wkd_feature(FS, FT, 1.0, 1).mean().item() - spread == pytest.approx(0.186875, rel=1e-13)
    low_s = doubles([[0.1, 0.2], [0.3, -0.4]], [[0.5, 0.6], [-0.7, 0.8]])
    low_t = doubles([[0.2, 0.1], [0, 0.4]], [[0.3, -0.6], [0.7, 0.5]])
    assert 3e-5 * mimicking(low_s, low_t).sum().item() == pytest.approx(1.284e-4, rel=1e-13)


# ----------------------------------------------------------------------------------------------------- by hand


def test_nd_by_hand():
    student, teacher, direction = doubles([3, 4], [0, 2]), doubles([1, 0], [6, 8]), doubles([1, 0], [0, 1])
    assert nd(student, teacher, direction).tolist() == pytest.approx([1 - 3 / 5, 1 - 2 / 10])
    assert nd(doubles([0, 0]), doubles([0, 0]), doubles([1, 0])).tolist() == [1.0]


def test_one_iteration_of_sinkhorn_by_hand():
    student, teacher = doubles([1, 0]), doubles([0.5, 0.5])
    k = math.exp(-1 / 0.5)  # of the classes 0 and 1, 1 apart; all of the student's mass is on 0
    v = 0.5 / (0.5 * (1 + k))
    u = 1 / (v * (1 + k))
    assert sinkhorn(student, teacher, doubles([0.5, 0.5]), doubles([0, 1], [1, 0]), 0.5, 1).item() == pytest.approx(
        u * k * v, rel=1e-6
    )


def test_a_class_left_out_in_one_matrix_is_that_of_a_matrix_of_the_others():
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    y, cost = torch.tensor([5, 0, 2, 2]), torch.rand(6, 6, generator=generator, dtype=torch.float64)
    found = wkd_logit(s, t, y, cost, 2.0, 0.05, 10)
    for b in range(4):
        rest = [k for k in range(6) if k != y[b]]
        p, q = ((z[b : b + 1, rest] / 2).softmax(1) for z in (s, t))
        expected = sinkhorn(p, q, torch.full_like(p, 1 / 5), cost[rest][:, rest], 0.05, 10)
        torch.testing.assert_close(found[b], expected[0], rtol=1e-10, atol=0)


def test_moving_mass_to_a_dear_class_costs_more():
    cost = doubles([0, 0.1, 0.9, 0.9], [0.1, 0, 0.9, 0.9], [0.9, 0.9, 0, 0.9], [0.9, 0.9, 0.9, 0])
    teacher, y = doubles([9, 0, 0, 0]), torch.tensor([3])
    near, far = (
        wkd_logit(z, teacher, y, cost, 1.0, 0.05, 50).item() for z in (doubles([0, 9, 0, 0]), doubles([0, 0, 9, 0]))
    )
    assert near == pytest.approx(0.1, abs=0.01)
    assert far == pytest.approx(0.9, abs=0.02)


def test_moments_are_of_the_parts_of_adaptive_pooling():
    feature = torch.randn(2, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means, spread = moments(feature, 3)
    torch.testing.assert_close(means, F.adaptive_avg_pool2d(feature, 3).flatten(2))
    torch.testing.assert_close(spread[:, :, 4], (feature[:, :, 2:5, 1:4].flatten(2).var(2) + 1e-5).sqrt())
    assert wkd_feature(feature, feature, 4.0, 3).tolist() == [0, 0]
    by_hand = wkd_feature(doubles(1, 3).view(1, 1, 1, 2), doubles(4, 4).view(1, 1, 1, 2), 2.0, 1).item()
    assert by_hand == pytest.approx(2 * 2**2 + (math.sqrt(2 + 1e-5) - math.sqrt(1e-5)) ** 2)


def test_all_but_the_smallest_numbers_are_masked():
    uniform = doubles([0.5, 0.1, 0.9, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert masked(uniform, 0.5).int().tolist() == [[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]]  # int(5 / 2) stay
    assert masked(uniform, 1.0).all()


# --------------------------------------------------------------------------------------------------------- terms

DIMS = {"stage1": 4, "stage2": 4, "stage3": 4, "tokens": 4, "prelogits": 8}
WIDE = {name: 2 * channels for name, channels in DIMS.items()}
LABELS = torch.arange(12) % 3
NAMES = ["nd", "wkd_logit", "wkd_feature", "vitkd"]


def teacher_of(statistic, feature=None, everything=False):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 16, generator=generator) if feature else torch.rand(3, 3, generator=generator)


def loss_set(name, teacher=WIDE, student=DIMS, **fields):
    config = lookup("loss", name, name).Config(name=name, **fields)
    made = LossSet({name: config}, 0, TermSpec(3, 12, student, teacher, LABELS))
    made.before(teacher_of)
    return made


def output(dims, names, scale, seed, side=4):
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: (6, dims[n]) if n == "prelogits" else (6, dims[n], side, side) for n in names}
    features = {n: (scale * torch.randn(s, generator=generator)).bfloat16().requires_grad_() for n, s in shapes.items()}
    return Output((scale * torch.randn(6, 3, generator=generator)).bfloat16().requires_grad_(), features)


def pair_of(losses, scale=1.0, step=0, side=4):
    needed = losses.needed
    return Pair(
        output(DIMS, needed.features, scale, 1), output(WIDE, needed.of_teacher, scale, 2, side), LABELS[:6],
        torch.arange(6), 0.0, Context(0, step, 10, torch.device("cpu")).draw,
    )  # fmt: skip


def parts(out):
    return [out.logits, *out.features.values()]


@each("case", [(name, scale) for name in NAMES for scale in (0.0, 1e-4, 1.0, 1e4)])
def test_a_term_is_finite_in_float32_and_its_gradient_reaches_the_student_alone(case):
    name, scale = case
    losses = loss_set(name)
    pair = pair_of(losses, scale)
    with torch.autocast("cpu", torch.bfloat16):
        value = losses.terms[name](pair)
    assert value.shape == (6,)
    assert value.dtype == torch.float32
    value.mean().backward()
    seen = [x for x in parts(pair.student) if x.grad is not None]
    assert seen
    for tensor in (value, *(x.grad for x in seen), *(p.grad for p in losses.parameters())):
        assert torch.isfinite(tensor).all()
    assert all(x.grad is None for x in parts(pair.teacher))
    assert all(not buffer.requires_grad for buffer in losses.buffers())


@each("name", NAMES)
def test_half_precision_does_not_reach_a_term(name):
    half, whole = (pair_of(loss_set(name)) for _ in range(2))
    for out in (whole.student, whole.teacher):
        out.features.update({k: v.detach().float() for k, v in out.features.items()})
    full = Pair(
        Output(whole.student.logits.float(), whole.student.features),
        Output(whole.teacher.logits.float(), whole.teacher.features),
        whole.target, whole.index, 0.0, whole.draw,
    )  # fmt: skip
    expected = loss_set(name).terms[name](full)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_set(name).terms[name](half)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each("name", ["nd", "vitkd"])
def test_what_is_dropped_and_masked_is_a_matter_of_the_step(name):
    losses = loss_set(name)
    first, again, later = (losses.terms[name](pair_of(losses, step=step)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_an_adaptor_stands_where_widths_differ_alone():
    assert not list(loss_set("nd", student=WIDE).parameters())
    assert {name for name, _ in loss_set("nd").named_parameters()} == {
        "terms.nd.norm.weight", "terms.nd.norm.bias", "terms.nd.linear.weight", "terms.nd.linear.bias",
    }  # fmt: skip
    equal = loss_set("vitkd", teacher=DIMS)
    assert not [name for name, _ in equal.named_parameters() if "align" in name]
    assert len([name for name, _ in loss_set("vitkd").named_parameters() if "align" in name]) == 6
    doubled = loss_set("wkd_feature", upscale=2)
    assert doubled.terms["wkd_feature"].projector(torch.zeros(1, 4, 4, 4)).shape == (1, 8, 8, 8)


def test_vitkd_is_the_sum_of_its_parts():
    losses = loss_set("vitkd", alpha=2.0, beta=3.0, mask_ratio=0.25)
    term, pair = losses.terms["vitkd"], pair_of(losses)
    (s1, s2, sh), (t1, t2, th) = (
        [x.detach().float() for x in out.features.values()] for out in (pair.student, pair.teacher)
    )
    low = sum(
        ((align(s.flatten(2).mT) - t.flatten(2).mT) ** 2).sum((1, 2))
        for align, s, t in zip(term.align_low, (s1, s2), (t1, t2), strict=True)
    )
    x = term.align(sh.flatten(2).mT)  # (B, N, C)
    mask = masked(Context(0, 0, 10, torch.device("cpu")).draw(6, 16), 0.25)
    assert mask.sum(1).tolist() == [4] * 6
    x[mask] = term.mask_token
    made = term.generation(x.mT.unflatten(2, (4, 4))).flatten(2).mT
    high = torch.stack([((made[b] - th[b].flatten(1).mT)[mask[b]] ** 2).sum() for b in range(6)])
    torch.testing.assert_close(term(pair), 2 * low + 3 / 0.25 * high)


REFUSED = {
    "a network without blocks": (lambda: loss_set("vitkd", student={"stage1": 4, "prelogits": 8}), "loss.vitkd: the student gives no tokens; it gives stage1, prelogits"),
    "a teacher without maps": (lambda: loss_set("wkd_feature", teacher={"prelogits": 8}), "loss.wkd_feature: the teacher gives no stages; it gives prelogits"),
    "a teacher without features": (lambda: loss_set("wkd_logit", teacher={}, features="prelogits"), "loss.wkd_logit: the teacher gives no prelogits; it gives none"),
    "grids": (lambda: (losses := loss_set("vitkd")).terms["vitkd"](pair_of(losses, side=6)), "loss.vitkd: the student has 4x4 tokens, the teacher 6x6; give both as many patches"),
    "a part of one position": (lambda: (losses := loss_set("wkd_feature", grid=4)).terms["wkd_feature"](pair_of(losses)), "loss.wkd_feature.grid: 4 leaves one position of a map of 4x4 in a part"),
}  # fmt: skip


@each("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name):
    build, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        build()
    assert str(error.value).startswith(message)
    assert len(error.value.lines) == 1


@each("name", [*NAMES, "fitnet", "at", "vid", "rkd", "pkt", "crd", "itrd"])
def test_the_check_before_a_run_takes_a_step_with_every_feature_term(name):
    few = ["loss.crd.num_negatives=8"] if name == "crd" else []
    words = [*FAST, *TEACHER, f"loss={name}", *few, *(VITS if name == "vitkd" else [])]
    with Composer() as composer:
        run = Assembly.outline(composer.typed(["method=distill", *words]))
    looked = []
    run.method.losses().terms[name].register_forward_hook(lambda module, given, value: looked.append(value.device.type))
    rehearse(run)
    assert looked == ["meta"]


def test_the_check_before_a_run_finds_a_grid_that_is_too_fine():
    with Composer() as composer:
        config = composer.typed(["method=distill", *FAST, *TEACHER, "loss=wkd_feature", "loss.wkd_feature.grid=8"])
    with pytest.raises(ConfigError, match=r"loss.wkd_feature.grid: 8 leaves one position of a map of 2x2 in a part"):
        rehearse(Assembly.outline(config))


# --------------------------------------------------------------------------------------------- features and sets


@each("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_pwee_patch16_reg1_gap_256"])
def test_tokens_are_the_last_map_behind_the_norm_without_class_tokens(name):
    args = {"img_size": 8, "patch_size": 2, "depth": 2}
    with torch.no_grad():
        network = build_network(ModelConfig(name=name, args=args), num_classes=3, in_chans=3, mean=(0.5,) * 3,
                                std=(0.2,) * 3, seed=0).eval()  # fmt: skip
        pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
        alone, beside = network(pixels, ("tokens",)), network(pixels, ("stage1", "tokens", "stage2"))
    assert list(beside.features) == ["stage1", "tokens", "stage2"]
    assert list(alone.features) == ["tokens"]
    found, last = beside.features["tokens"], beside.features["stage2"]
    assert found.shape == last.shape == (2, network.dims["tokens"], 4, 4)
    torch.testing.assert_close(found.movedim(1, -1), network.net.norm(last.movedim(1, -1)))
    torch.testing.assert_close(alone.features["tokens"], found)
    torch.testing.assert_close(alone.logits, network(pixels).logits)


def test_no_other_network_has_tokens():
    for name in ("resnet8", "swin_tiny_patch4_window7_224", "convnext_atto"):
        with torch.device("meta"):
            network = build_network(
                ModelConfig(name=name), num_classes=3, in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3, seed=0
            )
        assert "tokens" not in network.dims, name


@pytest.mark.parametrize(("loss", "key", "factors"), [
    ("kdpp", "loss.kd.weight", {0: 0, 10: 0.5, 20: 1, 239: 1}),
    ("wkd_logit", "loss.wkd_logit.weight", {0: 1, 150: 1, 195: 0.5, 240: 0}),
    ("wkd_feature", "loss.wkd_feature.weight", {0: 1, 150: 1, 180: 0.75, 240: 0}),
])  # fmt: skip
def test_weights_move_as_the_papers_do(loss, key, factors):
    with Composer() as composer:
        config = composer.typed(["method=distill", *FAST, *TEACHER, f"loss={loss}"])
    found = {epoch: Ramps(config.ramps).factors(epoch / 240)[key] for epoch in factors}
    assert found == pytest.approx(factors)


def test_both_distances_stand_beside_each_other_with_their_own_values():
    with Composer() as composer:
        config = composer.typed(["method=distill", *FAST, *TEACHER, "loss=wkd"])
    losses = config.losses
    assert {label: term.weight for label, term in losses.items()} == {
        "ce": 1.0, "target": 1.0, "wkd_logit": 200.0, "wkd_feature": 0.08,
    }  # fmt: skip
    assert (losses["target"].name, losses["target"].gamma, losses["wkd_feature"].mean_weight) == ("nkd", 0.0, 8.0)
    assert {ramp.key for ramp in config.ramps.values()} == {"loss.wkd_logit.weight", "loss.wkd_feature.weight"}


class Encoder(nn.Module):
    """What a CLIP is to `ZeroShot`."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 64, 6)

    def encode_image(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("method", ["sho", "dho"])
@pytest.mark.parametrize("features", ["logits", "prelogits"])
def test_a_clip_teaches_with_wkd_on_unlabeled_images(method, features):
    with Composer() as composer:
        config = composer.typed([f"method={method}", *FAST, "teacher=resnet8", "loss=wkd_logit", f"loss.wkd_logit.features={features}",
                                 "loss.wkd_logit.classes=teacher", "dataset.num_labels=10"])  # fmt: skip
    run = Assembly.of(config, torch.device("cpu"))
    torch.manual_seed(0)
    run.teacher = Teacher(
        ZeroShot(Encoder(), F.normalize(torch.randn(10, 6)), 100.0, (0.5,) * 3, (0.2,) * 3, (8, 8), "clip")
    )
    run.method.before_terms(AskedTeacher(run, keep=False))
    losses = run.method.train()(run.loader.batch(0), ctx(run.config, 0)).losses
    run.loader.close()
    assert {"ce", "target", "unlabeled_target", "wkd_logit", "unlabeled_wkd_logit"} == losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())
    with Composer() as composer:
        run = Assembly.of(
            composer.typed([f"method={method}", *FAST, "teacher=resnet8", "loss=wkd"]), torch.device("cpu")
        )
    run.teacher = Teacher(ZeroShot(Encoder(), torch.randn(10, 6), 100.0, (0.5,) * 3, (0.2,) * 3, (8, 8), "clip"))
    with pytest.raises(ConfigError, match=r"^loss.wkd_feature: the teacher gives no stages; it gives prelogits$"):
        _ = run.method
