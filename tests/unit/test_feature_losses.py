"""Losses between features: by hand, against slow references, their invariances, and what their terms keep."""

import math
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import lookup
from kdrun.losses.crd import nce, of_other_classes
from kdrun.losses.features import at, pkt, rkd_angle, rkd_distance, vid
from kdrun.losses.fitnet import fitnet
from kdrun.losses.itrd import correlation_loss, mutual_information_loss
from kdrun.losses.set import LossSet
from kdrun.losses.term import Pair, TermSpec
from kdrun.methods.step import Context
from kdrun.models.network import NetworkSpec, build_network, outline
from kdrun.models.output import Output
from kdrun.training.optimizer import parameter_groups
from tests.contract.test_methods import ctx, make, make_optimizer
from tests.each import each

MAPS = {
    "fitnet": fitnet,
    "at": at,
    "vid": lambda s, t: vid(s, torch.linspace(0.5, 2, s.shape[1], dtype=s.dtype), t),
}
VECTORS = {
    "rkd_distance": rkd_distance, "rkd_angle": rkd_angle, "pkt": pkt,
    "correlation": lambda s, t: correlation_loss(s, t, 1.5), "mutual_information": mutual_information_loss,
}  # fmt: skip
ALL = {**MAPS, **VECTORS}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shape_of(name: str, batch: int = 5) -> tuple[int, ...]:
    return (batch, 3, 2, 4) if name in MAPS else (batch, 6)


# ----------------------------------------------------------------------------------------------------- by hand


def test_fitnet_by_hand():
    student, teacher = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 5.0]]]])
    assert fitnet(student, teacher).tolist() == [4.5]  # (0 + 9) / 2


def test_fitnet_pools_the_larger_map():
    student, teacher = torch.ones(1, 1, 1, 1), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert fitnet(student, teacher).tolist() == [2.25]  # the mean of the teacher's is 2.5
    assert fitnet(teacher, student).tolist() == [2.25]


def test_at_by_hand():
    """One channel, positions (3, 4) -> squares (9, 16), normalized (9, 16) / sqrt(337); the teacher's are (1, 0)."""
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]).double(), torch.tensor([[[[7.0, 0.0]]]]).double()
    by_hand = ((9 / math.sqrt(337) - 1) ** 2 + (16 / math.sqrt(337)) ** 2) / 2
    assert at(student, teacher).item() == pytest.approx(by_hand, abs=1e-12)


def test_vid_by_hand():
    mean, teacher = torch.zeros(1, 2, 1, 1).double(), torch.tensor([[[[2.0]], [[3.0]]]]).double()
    value = vid(mean, torch.tensor([1.0, 4.0]).double(), teacher).item()
    assert value == pytest.approx((4 / 1 + 9 / 4 + math.log(4)) / 4, abs=1e-12)


def test_rkd_distance_by_hand():
    """Two points lie 1 mean distance apart in any space; of three on a line at 0, 1, 3 the mean is 2."""
    assert rkd_distance(normal(2, 3), normal(2, 5, seed=1)).item() == pytest.approx(0, abs=1e-12)
    line, same = torch.tensor([[0.0], [1.0], [3.0]]).double(), torch.tensor([[0.0, 0], [1, 0], [0.5, 0.75**0.5]])
    expected = 2 * sum(0.5 * (d / 2 - 1) ** 2 for d in (1, 2, 3)) / 9
    assert rkd_distance(line, same.double()).item() == pytest.approx(expected, abs=1e-6)


def test_rkd_angle_by_hand():
    """A right angle against a line: the cosine at the middle point is -1 instead of 0, at the ends 1 instead of r."""
    line = torch.tensor([[1.0, 0], [0, 0], [-1, 0]]).double()
    corner = torch.tensor([[1.0, 0], [0, 0], [0, 1]]).double()
    r = math.sqrt(0.5)
    expected = (2 * 0.5 * 1**2 + 4 * 0.5 * (1 - r) ** 2) / 27
    assert rkd_angle(line, corner).item() == pytest.approx(expected, abs=1e-12)


def test_pkt_by_hand():
    """Orthogonal rows: (1 + 1, 0 + 1) / 2 -> (2/3, 1/3); equal rows: (1/2, 1/2)."""
    student, teacher = torch.eye(2).double(), torch.ones(2, 2).double()
    by_hand = (0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))) / 2
    assert pkt(student, teacher, eps=0).item() == pytest.approx(by_hand, abs=1e-12)


def test_correlation_by_hand():
    """Dimension 1 is correlated by 1, dimension 2 by -1; of four samples 3/4 of that is left."""
    x = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()
    student, teacher = torch.stack([x, x], 1), torch.stack([3 * x + 1, -x], 1)
    assert correlation_loss(student, teacher, 1.5).item() == pytest.approx(math.log2(0.25**3 + 1.75**3), abs=1e-12)


def test_mutual_information_by_hand():
    """Equal rows have information of order 2 in neither; two orthogonal ones of the student, nothing beside the teacher."""
    same, apart = torch.ones(2, 3).double(), torch.eye(2).double()
    assert mutual_information_loss(same, same).item() == pytest.approx(0, abs=1e-12)  # 4 / 4 - 4 / 4
    assert mutual_information_loss(same, apart).item() == pytest.approx(1 - 0.5, abs=1e-12)
    assert mutual_information_loss(apart, same).item() == pytest.approx(0, abs=1e-12)


def test_nce_by_hand():
    positive, negative = torch.tensor([1.0]).double(), torch.tensor([[0.0, 2.0]]).double()
    z, k_n = 3.0, 2 / 10
    h = [math.exp(s) / z for s in (1, 0, 2)]
    by_hand = -math.log(h[0] / (h[0] + k_n)) - sum(math.log(k_n / (x + k_n)) for x in h[1:])
    assert nce(positive, negative, torch.tensor(z).log(), 10).item() == pytest.approx(by_hand, rel=1e-6)


# -------------------------------------------------------------------------------------------- slow references


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def slow_rkd_distance(s, t):
    b = len(s)

    def scaled(x):
        d = {(i, j): float(np.linalg.norm(x[i] - x[j])) for i in range(b) for j in range(b)}
        mean = np.mean([v for v in d.values() if v > 0])
        return {k: v / mean for k, v in d.items()}

    a, c = scaled(s), scaled(t)
    return sum(huber(a[k] - c[k]) for k in a) / b**2


def slow_rkd_angle(s, t):
    b = len(s)

    def cosine(x, i, j, k):
        u, v = x[i] - x[j], x[k] - x[j]
        norms = np.linalg.norm(u) * np.linalg.norm(v)
        return float(u @ v / norms) if norms > 0 else 0.0

    triplets = [(i, j, k) for i in range(b) for j in range(b) for k in range(b)]
    return sum(huber(cosine(s, *n) - cosine(t, *n)) for n in triplets) / b**3


def slow_pkt(s, t, eps=1e-7):
    b = len(s)

    def rows(x):
        p = np.array(
            [[(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) + 1) / 2 for j in range(b)] for i in range(b)]
        )
        return np.array([row / row.sum() for row in p])

    p, q = rows(s), rows(t)
    return sum(q[i, j] * math.log((q[i, j] + eps) / (p[i, j] + eps)) for i in range(b) for j in range(b)) / b**2


def slow_correlation(s, t):
    total = 0.0
    for k in range(s.shape[1]):
        a, c = ((x[:, k] - x[:, k].mean()) / x[:, k].std(ddof=1) for x in (s, t))
        total += abs(np.mean(a * c) - 1) ** 3.0
    return math.log2(total)


def slow_mutual_information(s, t):
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
    own, other = s @ s.T, t @ t.T
    joint = own * other
    return ((own / np.trace(own)) ** 2).sum() - ((joint / np.trace(joint)) ** 2).sum()


def slow_at(s, t):
    out = []
    for a, c in zip(s, t, strict=True):
        maps = [
            np.array([[np.mean(x[:, h, w] ** 2) for w in range(x.shape[2])] for h in range(x.shape[1])]) for x in (a, c)
        ]
        p, q = (m / np.sqrt((m**2).sum()) for m in maps)
        out.append(((p - q) ** 2).sum() / p.size)
    return out


def slow_vid(s, t):
    variance = np.linspace(0.5, 2, s.shape[1])
    return [
        np.mean([0.5 * ((t[b, c] - s[b, c]) ** 2 / variance[c] + np.log(variance[c])) for c in range(s.shape[1])])
        for b in range(len(s))
    ]


SLOW = {
    "fitnet": lambda s, t: [np.mean((a - b) ** 2) for a, b in zip(s, t, strict=True)],
    "at": slow_at, "vid": slow_vid, "rkd_distance": slow_rkd_distance, "rkd_angle": slow_rkd_angle, "pkt": slow_pkt,
    "correlation": slow_correlation, "mutual_information": slow_mutual_information,
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_slow_reference(name, seed):
    student, teacher = normal(*shape_of(name), seed=seed), normal(*shape_of(name), seed=seed + 10)
    slow = torch.as_tensor(np.array(SLOW[name](student.numpy(), teacher.numpy())))
    torch.testing.assert_close(ALL[name](student, teacher), slow, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", ALL)
def test_gradient_to_the_student_only_and_right(name):
    student = normal(*shape_of(name, 4)).requires_grad_()
    teacher = normal(*shape_of(name, 4), seed=1).requires_grad_()
    ALL[name](student, teacher).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, teacher.detach()), (student.detach().requires_grad_(),))


def test_vid_gradient_of_the_variance():
    mean, teacher, variance = normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1), torch.tensor([0.5, 1, 2]).double()
    assert torch.autograd.gradcheck(lambda v: vid(mean, v, teacher), (variance.requires_grad_(),))


@each("name", ALL)
@each("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_whatever_comes_in(name, dtype):
    student, teacher = normal(*shape_of(name)).to(dtype), normal(*shape_of(name), seed=1).to(dtype)
    got = ALL[name](student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, ALL[name](student.float(), teacher.float()))


@each("name", ALL)
@each("kind", ["one sample", "identical samples", "zeros", "huge", "tiny"])
def test_finite_where_there_is_little_to_compare(name, kind):
    student, teacher = normal(*shape_of(name)).float(), normal(*shape_of(name), seed=1).float()
    if kind == "one sample":
        student, teacher = student[:1], teacher[:1]
    elif kind == "identical samples":
        student, teacher = student[:1].expand_as(student), teacher[:1].expand_as(teacher)
    else:
        scale = {"zeros": 0.0, "huge": 1e4, "tiny": 1e-4}[kind]
        student, teacher = student * scale, teacher * scale
    student = student.clone().requires_grad_()
    value = ALL[name](student, teacher)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ["fitnet", "at", "rkd_distance", "rkd_angle", "pkt"])
def test_zero_where_both_are_the_same(name):
    x = normal(*shape_of(name))
    assert ALL[name](x, x).abs().max() < 1e-9


SEEDS = st.integers(0, 1000)
SCALES = st.floats(0.1, 10)
quick = settings(max_examples=25, deadline=None)


@quick
@given(SEEDS, SCALES, st.floats(-3, 3))
def test_rkd_does_not_see_scale_rotation_or_place(seed, scale, shift):
    student, teacher = normal(6, 4, seed=seed), normal(6, 5, seed=seed + 1)
    rotation = torch.linalg.qr(normal(4, 4, seed=seed + 2))[0]
    moved = scale * student @ rotation + shift
    for loss in (rkd_distance, rkd_angle):
        torch.testing.assert_close(loss(moved, teacher), loss(student, teacher), rtol=1e-7, atol=1e-9)


@quick
@given(SEEDS, SCALES)
def test_pkt_does_not_see_the_length_of_a_row(seed, scale):
    student, teacher = normal(6, 4, seed=seed), normal(6, 5, seed=seed + 1)
    lengths = scale * (1 + torch.arange(6).double())[:, None]
    torch.testing.assert_close(pkt(lengths * student, teacher), pkt(student, teacher))
    assert pkt(student, teacher) >= -1e-9


@quick
@given(SEEDS, SCALES)
def test_at_does_not_see_scale_or_the_order_of_channels(seed, scale):
    student, teacher = normal(3, 4, 2, 2, seed=seed), normal(3, 6, 2, 2, seed=seed + 1)
    torch.testing.assert_close(at(-scale * student.flip(1), teacher), at(student, teacher))


@quick
@given(SEEDS, SCALES)
def test_correlation_does_not_see_an_affine_map_of_each_dimension(seed, scale):
    student, teacher = normal(8, 3, seed=seed), normal(8, 3, seed=seed + 1)
    factors = scale * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    moved = correlation_loss(factors * student + 7, teacher, 1.01)
    torch.testing.assert_close(moved, correlation_loss(student, teacher, 1.01))
    best = correlation_loss(factors * teacher - 1, teacher, 1.01)
    assert best.item() == pytest.approx(math.log2(3 * (1 / 8) ** 2.02))
    assert best <= moved


@quick
@given(SEEDS, st.integers(2, 9), st.integers(1, 40))
def test_negatives_are_of_other_classes_and_reach_all_of_them(seed, classes, size):
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, size, (classes,), generator=generator)
    count[0] += 1
    count[1] += 1
    label_of_row = torch.arange(classes).repeat_interleave(count)
    target = torch.randint(classes, (16,), generator=generator)
    uniform = torch.rand(16, 500, generator=generator)
    uniform[0, 0], uniform[0, 1] = 0, 1 - 2**-24
    rows = of_other_classes(uniform, target, count)
    assert rows.min() >= 0
    assert rows.max() < count.sum()
    assert (label_of_row[rows] != target[:, None]).all()
    every = of_other_classes(torch.arange(4096).expand(16, -1) / 4096, target, count)
    for row, label in zip(every, target, strict=True):
        assert row.unique().tolist() == (label_of_row != label).nonzero().flatten().tolist()


# ------------------------------------------------------------------------------------------------------- terms

TERMS = ["fitnet", "at", "vid", "rkd", "pkt", "crd", "itrd"]
DIMS = {"stage1": 4, "stage2": 6, "stage3": 8, "prelogits": 8}
WIDE = {"stage1": 8, "stage2": 12, "stage3": 16, "prelogits": 16}
LABELS = torch.tensor([0, 1, 2, 0, -1, 1, 2, 0, -1, 1, 2, 0])


def loss_set(name: str, student=DIMS, teacher=WIDE, train_target=LABELS, seed: int = 0, **fields) -> LossSet:
    config = lookup("loss", name, name).Config(name=name, **fields)
    return LossSet({name: config}, seed, TermSpec(3, len(train_target), student, teacher, train_target))


def output(dims, batch: int, side: int, seed: int, dtype=torch.float32, names=None) -> Output:
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for k, (name, channels) in enumerate(dims.items()):
        shape = (batch, channels) if name == "prelogits" else (batch, channels, max(1, side >> k), max(1, side >> k))
        value = torch.randn(shape, generator=generator).to(dtype)
        if names is None or name in names:
            features[name] = value.requires_grad_()
    return Output(torch.zeros(batch, 3), features)


def make_pair(losses: LossSet, batch: int = 6, step: int = 0, dtype=torch.float32, target=None, index=None) -> Pair:
    index = torch.tensor([0, 1, 2, 3, 5, 6])[:batch] if index is None else index
    return Pair(
        output(DIMS, batch, 8, 1, dtype, losses.needed.features),
        output(WIDE, batch, 4, 2, dtype, losses.needed.of_teacher),
        LABELS[index] if target is None else target, index, 0.0,
        Context(0, step, 10, torch.device("cpu")).draw,
    )  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("batch", [6, 1])
def test_a_term_gives_what_it_says_and_no_gradient_reaches_the_teacher(name, batch):
    losses = loss_set(name)
    pair = make_pair(losses, batch)
    term = losses.terms[name]
    value = term(pair)
    assert value.shape == ((batch,) if term.needed.per_sample else ())
    assert torch.isfinite(value).all()
    value.mean().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in pair.student.features.values())
    assert all(x.grad is None for x in pair.teacher.features.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in losses.parameters())


@pytest.mark.parametrize("name", TERMS)
def test_autocast_does_not_reach_a_term(name):
    losses = loss_set(name)
    half = make_pair(losses, dtype=torch.bfloat16)
    whole = make_pair(losses, dtype=torch.bfloat16)
    for features in (whole.student.features, whole.teacher.features):
        features.update({k: v.detach().float() for k, v in features.items()})
    expected = losses.terms[name](whole)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_set(name).terms[name](half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rkd", "pkt", "itrd"])
def test_batch_statistics_take_no_weights(name):
    losses = loss_set(name)
    with pytest.raises(ConfigError, match=f"loss.{name}: a statistic of the batch cannot be weighted per sample"):
        losses.teacher(make_pair(losses), torch.ones(6))


def test_rkd_and_itrd_sum_their_parts():
    pair = make_pair(loss_set("rkd"))
    x, y = pair.student.features["prelogits"], pair.teacher.features["prelogits"]
    rkd = loss_set("rkd", distance_weight=2.0, angle_weight=3.0)
    torch.testing.assert_close(rkd.terms["rkd"](make_pair(rkd)), 2 * rkd_distance(x, y) + 3 * rkd_angle(x, y))
    itrd = loss_set("itrd", mutual_information_weight=0.5, alpha=1.5)
    u = itrd.terms["itrd"].embedding(x)
    expected = 2 * correlation_loss(u, y, 1.5) + 0.5 * mutual_information_loss(u, y)
    torch.testing.assert_close(itrd.terms["itrd"](make_pair(itrd)), expected)


def test_itrd_embeds_before_mutual_information_only_where_the_widths_differ():
    itrd = loss_set("itrd", teacher=DIMS, correlation_weight=0.0)
    assert not list(itrd.parameters())
    with pytest.raises(ValueError, match="are both 0"):
        loss_set("itrd", correlation_weight=0.0, mutual_information_weight=0.0)


# What Tian et al. (arXiv 1910.10699) pair in their code, in our names: hint layer 2; all maps between stem and pooling.
PAIRS = {
    ("wrn_40_2", "wrn_16_2"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("wrn_40_2", "wrn_40_1"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("resnet56", "resnet20"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("resnet110", "resnet20"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("resnet110", "resnet32"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("resnet32x4", "resnet8x4"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("vgg13_cifar", "vgg8_cifar"): (3, 3, [2, 3, 4, 5], [2, 3, 4, 5]),
    ("vgg13_cifar", "mobilenetv2_half"): (3, 2, [2, 3, 4, 5], [1, 2, 3, 4]),
    ("resnet50_cifar", "mobilenetv2_half"): (2, 2, [1, 2, 3, 4], [1, 2, 3, 4]),
    ("resnet50_cifar", "vgg8_cifar"): (2, 3, [1, 2, 3, 4], [2, 3, 4, 5]),
    ("resnet32x4", "shufflenetv1"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("resnet32x4", "shufflenetv2"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("wrn_40_2", "shufflenetv1"): (2, 2, [1, 2, 3], [1, 2, 3]),
    ("resnet34", "resnet18"): (3, 3, [2, 3, 4, 5], [2, 3, 4, 5]),  # timm counts the stem
    ("deit3_small_patch16_224", "deit_tiny_patch16_224"): (6, 6, [9, 10, 11, 12], [9, 10, 11, 12]),
}


@lru_cache
def shapes(name: str, size: int) -> tuple[dict[str, int], Output]:
    """What a network gives, on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        net = build_network(ModelConfig(name=name), num_classes=3, in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, seed=0)
        return net.dims, net(torch.empty((2, 3, size, size), dtype=torch.uint8), tuple(net.dims))


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_the_stages_that_the_literature_pairs(names):
    size = 224 if "deit" in names[0] else 32
    (teacher_dims, teacher), (student_dims, student) = (shapes(name, size) for name in names)
    hint_t, hint_s, maps_t, maps_s = PAIRS[names]
    expected = {"fitnet": ([hint_s], [hint_t]), "at": (maps_s, maps_t), "vid": (maps_s, maps_t)}
    for name in ("fitnet", "at", "vid", "rkd", "pkt", "itrd"):
        with torch.device("meta"):
            losses = loss_set(name, student_dims, teacher_dims)
            term = losses.terms[name]
            value = term.value(*term.given(SimpleNamespace(student=student, teacher=teacher)))
        assert value.shape == ((2,) if term.needed.per_sample else ())
        if name in expected:
            found = losses.needed.features, losses.needed.of_teacher
            assert found == tuple(tuple(f"stage{k}" for k in stages) for stages in expected[name])


def test_terms_of_a_set_take_its_coefficients():
    table = "++coefficients={itrd+wttm: {itrd.alpha: 1.5, itrd.mutual_information_weight: 0, wttm.gamma: 0.3}, crd+wttm: {wttm.weight: 0.6}}"
    with Composer() as composer:
        itrd = composer.typed([table, "loss=wttm_itrd"]).losses
        assert (itrd["itrd"].alpha, itrd["itrd"].mutual_information_weight, itrd["wttm"].gamma) == (1.5, 0, 0.3)
        crd = composer.typed([table, "loss=wttm_crd"]).losses
        assert (crd["crd"].weight, crd["wttm"].weight, crd["wttm"].gamma) == (0.8, 0.6, 0.1)


def test_stages_by_name():
    losses = loss_set("at", features=["stage1", "stage3"], teacher_features=["stage2", "stage3"])
    assert losses.needed.features == ("stage1", "stage3")
    assert losses.needed.of_teacher == ("stage2", "stage3")
    assert loss_set("vid", features=["stage3"]).needed.of_teacher == ("stage3",)
    assert loss_set("fitnet", feature="stage1").needed.of_teacher == ("stage1",)
    one = loss_set("fitnet", feature="stage1", teacher_feature="stage3")
    assert (one.needed.features, one.needed.of_teacher) == (("stage1",), ("stage3",))


BARE = {"prelogits": 8}
REFUSED = {
    "absent stage": (lambda: loss_set("fitnet", feature="stage7"), "loss.fitnet: the student gives no stage7; it gives stage1, stage2, stage3, prelogits"),
    "absent in the teacher": (lambda: loss_set("at", features=["stage1"], teacher_features=["stage9"]), "loss.at: the teacher gives no stage9; it gives stage1"),
    "no stages": (lambda: loss_set("at", student=BARE), "loss.at: the student gives no stages; it gives prelogits"),
    "an ensemble": (lambda: loss_set("vid", teacher={}), "loss.vid: the teacher gives no stages; it gives none"),
    "no vector": (lambda: loss_set("crd", teacher={"stage1": 4}), "loss.crd: the teacher gives no prelogits; it gives stage1"),
    "unpaired": (lambda: loss_set("at", features=["stage1"], teacher_features=["stage1", "stage2"]), "loss.at: features names 1 stages, teacher_features 2"),
    "the teacher's alone": (lambda: loss_set("at", teacher_features=["stage1"]), "loss.at: teacher_features needs features"),
    "one class": (lambda: loss_set("crd", train_target=torch.tensor([1, 1, -1])), "loss.crd: crd draws negatives from other classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name):
    build, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        build()
    assert str(error.value).startswith(message)
    assert len(error.value.lines) == 1


def test_a_feature_that_is_no_map_is_refused():
    with pytest.raises(KdrunError, match=r"the teacher's feature of shape \(2, 3\) is no map"):
        at(torch.ones(2, 3, 1, 1), torch.ones(2, 3))


def test_parameters_of_terms_are_trained_with_the_student_and_not_exported(tmp_path):
    _, method, _, _ = make("distill", "loss=fitnet", "schedule.weight_decay=0.1")
    (group,) = parameter_groups(method)
    held = {id(p) for p in group["params"]}
    regressor = method.losses().terms["fitnet"].regressor
    assert {id(p) for p in regressor.parameters()} <= held
    assert group["weight_decay"] == 0.1
    assert any("regressor" in name for name in method.state_dict())
    method.networks()["student"].save(tmp_path / "student.safetensors")
    from safetensors.torch import load_file

    assert not [name for name in load_file(tmp_path / "student.safetensors") if "regressor" in name]


# --------------------------------------------------------------------------------------------------------- CRD


def test_crd_against_a_loop_over_samples():
    losses = loss_set("crd", num_negatives=7, embedding_dim=5)
    term, pair = losses.terms["crd"], make_pair(losses)
    draws = Context(0, 0, 10, torch.device("cpu")).draw(6, 7).double()
    row_of, banks = (
        term.row.tolist(),
        {r: getattr(term, f"{r}_memory").double().clone() for r in ("student", "teacher")},
    )
    order = sorted(range(12), key=lambda i: (int(LABELS[i]) % 10, i))  # -1 % 10 = 9: last
    assert [order.index(i) for i in range(12)] == row_of
    unit = {}
    for role, out in (("student", pair.student), ("teacher", pair.teacher)):
        linear = getattr(term, f"{role}_embedding")
        x = (
            out.features["prelogits"].detach().double() @ linear.weight.detach().double().T
            + linear.bias.detach().double()
        )
        unit[role] = x / x.norm(dim=1, keepdim=True)

    scores = {"student": [], "teacher": []}
    for b, i in enumerate(pair.index.tolist()):
        others = [k for k in order if LABELS[k] not in (-1, LABELS[i])]
        chosen = [i] + [others[int(u * len(others))] for u in draws[b].tolist()]
        for role, other in (("student", "teacher"), ("teacher", "student")):
            scores[role].append([math.exp(float(unit[role][b] @ banks[other][row_of[k]]) / 0.07) for k in chosen])
    expected = np.zeros(6)
    for rows in scores.values():
        z = np.mean(rows) * 10  # labeled images
        for b, row in enumerate(rows):
            h = [value / z for value in row]
            expected[b] -= math.log(h[0] / (h[0] + 7 / 10)) + sum(math.log(0.7 / (x + 0.7)) for x in h[1:])
    found = term(pair)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)

    found.sum().backward()
    with torch.no_grad():
        term.after_step(pair)
    for role, bank in banks.items():
        for b, i in enumerate(pair.index.tolist()):
            mixed = 0.5 * bank[row_of[i]] + 0.5 * unit[role][b]
            bank[row_of[i]] = mixed / mixed.norm()
        torch.testing.assert_close(getattr(term, f"{role}_memory").double(), bank, rtol=1e-5, atol=1e-6)


def test_crd_gradient_by_finite_differences():
    losses = loss_set("crd", num_negatives=50, embedding_dim=4, temperature=0.5).double()
    term, pair = losses.terms["crd"], make_pair(losses, dtype=torch.float64)
    term(pair)  # sets Z, which the first batch's gradient takes as a constant
    teacher = pair.teacher.features["prelogits"].detach()

    def value(features, weight):
        given = Pair(
            Output(pair.student.logits, {"prelogits": features}), Output(pair.student.logits, {"prelogits": teacher}),
            pair.target, pair.index, 0.0, Context(0, 0, 10, torch.device("cpu")).draw,
        )  # fmt: skip
        return torch.func.functional_call(term, {"student_embedding.weight": weight}, (given,))

    features = pair.student.features["prelogits"].detach().requires_grad_()
    weight = term.student_embedding.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (features, weight))


def test_crd_memory_changes_in_the_rows_of_the_batch_only_and_keeps_unit_norm():
    losses = loss_set("crd")
    term, pair = losses.terms["crd"], make_pair(losses)
    before = {r: getattr(term, f"{r}_memory").clone() for r in ("student", "teacher")}
    losses.teacher(pair)["crd"].backward()
    assert all(torch.equal(getattr(term, f"{r}_memory"), before[r]) for r in before)  # not before the step
    with torch.no_grad():
        losses.after_step()
    touched = set(term.row[pair.index].tolist())
    for role, old in before.items():
        new = getattr(term, f"{role}_memory")
        assert set((new != old).any(1).nonzero().flatten().tolist()) == touched
        torch.testing.assert_close(new.norm(dim=1), torch.ones(len(new)))
        assert not new.requires_grad


def test_crd_fixes_z_in_the_first_batch():
    losses = loss_set("crd")
    term = losses.terms["crd"]
    assert term.log_z.tolist() == [-math.inf, -math.inf]
    term(make_pair(losses))
    first = term.log_z.clone()
    assert torch.isfinite(first).all()
    term(make_pair(losses, step=1, index=torch.tensor([7, 9, 10, 11, 0, 1])))
    assert torch.equal(term.log_z, first)
    resumed = loss_set("crd", seed=5)
    resumed.load_state_dict(losses.state_dict())
    resumed.terms["crd"](make_pair(losses, step=2))
    assert torch.equal(resumed.terms["crd"].log_z, first)


def test_crd_depends_on_seed_and_step_only():
    first, same, later = (loss_set("crd") for _ in range(3))
    values = [s.terms["crd"](make_pair(s, step=k)) for s, k in ((first, 3), (same, 3), (later, 4))]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert not torch.equal(
        loss_set("crd").terms["crd"].student_memory, loss_set("crd", seed=1).terms["crd"].student_memory
    )


def test_crd_draws_with_replacement_so_few_images_are_enough():
    losses = loss_set(
        "crd", num_negatives=1000, train_target=torch.tensor([0, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1])
    )
    assert torch.isfinite(losses.terms["crd"](make_pair(losses, target=torch.tensor([0, 1, 0, 1, 0, 1])))).all()


def test_crd_takes_an_unlabeled_image_that_was_given_a_class_but_never_as_a_negative():
    losses = loss_set("crd")
    term = losses.terms["crd"]
    hidden = (LABELS < 0).nonzero().flatten()
    assert (term.row[hidden] >= term.num_data).all()
    pair = make_pair(losses, 2, target=torch.tensor([0, 2]), index=hidden)
    before = term.teacher_memory.clone()
    term(pair).sum().backward()
    with torch.no_grad():
        term.after_step(pair)
    assert (term.teacher_memory != before).any(1).nonzero().flatten().tolist() == term.row[hidden].tolist()


def test_crd_refuses_what_has_no_class():
    losses = loss_set("crd")
    pair = make_pair(losses)
    bare = Pair(pair.student, pair.teacher, None, pair.index, 0.0, pair.draw)
    with pytest.raises(KdrunError, match=r"loss\.crd needs labels, and this stream has none"):
        losses.teacher(bare)
    with pytest.raises(KdrunError, match=r"loss\.crd needs one class for each sample"):
        losses.teacher(make_pair(losses, target=torch.ones(6, 3) / 3))


@pytest.mark.parametrize("loss", ["wttm_crd", "wttm_itrd", "vid"])
def test_three_and_three_steps_are_six(loss):
    from tests.contract.test_methods import fit

    overrides = [f"loss={loss}", "schedule.lr=0.01"] + (["loss.crd.num_negatives=64"] if "crd" in loss else [])
    whole, first, second = (make("distill", *overrides) for _ in range(3))
    losses = fit(*whole[:3], 0, 6)
    optimizer = make_optimizer(first[1])
    head = fit(*first[:3], 0, 3, optimizer)
    second[1].load_state_dict(first[1].state_dict())
    other = make_optimizer(second[1])
    other.load_state_dict(optimizer.state_dict())
    assert head + fit(*second[:3], 3, 6, other) == losses
    ours, theirs = whole[1].state_dict(), second[1].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_loop_updates_the_memory():
    config, method, loader, _ = make("distill", "loss=crd", "loss.crd.num_negatives=16")
    memory = method.losses().terms["crd"].student_memory
    before = memory.clone()
    method(loader.batch(0), ctx(config, 0)).losses["crd"].backward()
    method.finish_step()
    assert 0 < int((memory != before).any(1).sum()) <= config.schedule.batch_size


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"), [(2, 2, (1, 1)), (2, 4, (3, 3)), (8, 4, (4, 4)), (None, None, None), (2, 8, None), (2, None, None)]
)  # fmt: skip
def test_the_regressor_of_the_literature_brings_a_map_to_the_teacher_s_size(student, teacher, kernel):
    """1x1 of equal maps, 3x3 of stride 2 of one twice as large, a transposed 4x4 of one half as large."""
    config = lookup("loss", "fitnet", "").Config(name="fitnet", regressor="conv")
    sides = [{} if side is None else {"stage2": side} for side in (student, teacher)]
    spec = TermSpec(
        3, len(LABELS), DIMS, WIDE, LABELS, student_reductions=sides[0], teacher_reductions=sides[1]
    )  # fmt: skip
    if kernel is None:
        with pytest.raises(
            ConfigError, match=r"^loss\.fitnet: regressor: conv is for maps of which one is at most twice"
        ):
            LossSet({"fitnet": config}, 0, spec)
        return
    term = LossSet({"fitnet": config}, 0, spec).terms["fitnet"]
    assert term.regressor[0].kernel_size == kernel
    given, wanted = torch.randn(2, 6, 16 // student, 16 // student), torch.randn(2, 12, 16 // teacher, 16 // teacher)
    made = term.regressor(given)
    assert made.shape == wanted.shape
    assert torch.allclose(term.value([given], [wanted]), (made - wanted).square().flatten(1).mean(1))


def test_a_network_tells_how_much_smaller_its_maps_are():
    told = {"resnet8": (1, 2, 4), "shufflenetv2": (2, 4, 8), "wrn_40_2": (1, 2, 4), "vgg8_cifar": (1, 2, 4, 8, 8)}
    for name, reductions in told.items():
        spec = NetworkSpec({"name": name}, 10, 3, (0.5,) * 3, (0.5,) * 3)
        assert tuple(outline(spec).reductions.values()) == reductions
    sized = NetworkSpec({"name": "resnet8", "size": 64}, 10, 3, (0.5,) * 3, (0.5,) * 3)
    assert outline(sized).reductions == {}  # maps of the resized image, which the teacher does not see


def test_memories_may_start_as_in_the_authors_code():
    plain, own = loss_set("crd", num_negatives=4, seed=3), loss_set("crd", num_negatives=4, seed=3, init="uniform")
    for role in ("student", "teacher"):
        unit, uniform = (getattr(terms.terms["crd"], f"{role}_memory") for terms in (plain, own))
        assert torch.allclose(unit.norm(dim=1), torch.ones(len(LABELS)))
        bound = (3 / 128) ** 0.5  # 1 / sqrt(D / 3)
        assert 0.95 * bound < uniform.abs().max() <= bound
        assert uniform.norm(dim=1).std() > 0.01
