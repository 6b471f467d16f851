"""Logit losses against identities of their papers, slow references written down another way, and values by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from kdrun.core.errors import KdrunError
from kdrun.core.registry import _REGISTRY, lookup
from kdrun.losses.correlation import dist
from kdrun.losses.decoupled import dkd, nkd
from kdrun.losses.labels import cross_entropy
from kdrun.losses.logits import kd, power_sum, renyi_entropy, standardize, ttm, wttm
from kdrun.losses.term import Pair, TermSpec
from kdrun.models.output import Output
from tests.each import each

lookup("loss", "kd", "")
LOGIT_TERMS = [name for name in ("kd", "ttm", "wttm", "dkd", "dist", "nkd", "ctkd", "rld") if name in _REGISTRY["loss"]]
T = torch.tensor([[3.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
S = torch.tensor([[1.0, 0.5, -0.5, 0.0]], dtype=torch.float64)
classes, seeds, scales = st.integers(2, 30), st.integers(0, 10_000), st.floats(0.05, 10)
temperatures = st.floats(0.5, 20)


def logits(seed: int, classes: int, scale: float = 1.0, batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """A student's and a teacher's, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, classes, generator=generator, dtype=torch.float64) * scale
    return student, teacher


def labels(batch: int, classes: int) -> torch.Tensor:
    return torch.arange(batch) * 7 % classes


def term(name: str, **fields):
    cls = lookup("loss", name, "")
    return cls(cls.Config(name=name, **fields), TermSpec(10, 100, {}, {}, torch.zeros(100)))


def pair(student, teacher, target=None, progress: float = 0.5) -> Pair:
    taught = None if teacher is None else Output(teacher, {})
    return Pair(
        Output(student, {}), taught, target, torch.arange(len(student)), progress, lambda *shape: torch.rand(shape)
    )


def grad(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value.sum(), at, retain_graph=True)[0]


# ------------------------------------------------------------------------------------------- identities of the papers


@settings(max_examples=50, deadline=None)
@given(seeds, classes, scales)
def test_ttm_at_gamma_one_is_kl_of_the_plain_probabilities(seed, classes, scale):
    s, t = logits(seed, classes, scale)
    p, q = t.softmax(1), s.softmax(1)
    torch.testing.assert_close(ttm(s, t, 1.0), (p * (p.log() - q.log())).sum(1))


@settings(max_examples=50, deadline=None)
@given(seeds, classes, scales, st.floats(0.05, 1.0))
def test_wttm_is_ttm_times_a_weight_between_one_and_that_of_an_unsure_teacher(seed, classes, scale, gamma):
    s, t = logits(seed, classes, scale)
    weighted, plain = wttm(s, t, gamma), ttm(s, t, gamma)
    torch.testing.assert_close(weighted, power_sum(t, gamma) * plain)
    assert (weighted >= plain - 1e-12).all()
    assert (weighted <= classes ** (1 - gamma) * plain + 1e-12).all()


@settings(max_examples=50, deadline=None)
@given(seeds, classes, st.floats(1.1, 10), st.floats(0.1, 0.95))
def test_the_gradient_of_kd_is_that_of_ttm_and_of_a_renyi_entropy(seed, classes, temperature, share):
    """ttm = (kd - lambda T (T - 1) H_{1/T}(p_s)) / (1 - lambda) + const at weight lambda T / (1 - lambda)."""
    s, t = logits(seed, classes)
    s.requires_grad_()
    ce = cross_entropy(s, labels(6, classes))
    with_kd = grad((1 - share) * ce + share * kd(s, t, temperature), s)
    with_ttm = grad(ce + share * temperature / (1 - share) * ttm(s, t, 1 / temperature), s)
    entropy = grad(renyi_entropy(s, 1 / temperature), s)
    torch.testing.assert_close(with_kd, (1 - share) * with_ttm + share * temperature * (temperature - 1) * entropy)


def test_kd_of_the_literature_is_ttm_at_36():
    s, t = logits(0, 10)
    s.requires_grad_()
    ce = cross_entropy(s, labels(6, 10))
    with_kd = grad(0.1 * ce + 0.9 * kd(s, t, 4.0) - 0.9 * 4 * 3 * renyi_entropy(s, 0.25), s)
    torch.testing.assert_close(with_kd, 0.1 * grad(ce + 36 * ttm(s, t, 0.25), s))


@settings(max_examples=50, deadline=None)
@given(seeds, classes, scales, temperatures)
def test_dkd_with_the_weight_of_kd_is_kd(seed, classes, scale, temperature):
    s, t = logits(seed, classes, scale)
    y = labels(6, classes)
    beta = 1 - (t / temperature).softmax(1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(dkd(s, t, y, 1.0, beta, temperature), kd(s, t, temperature))


def test_with_two_classes_there_is_nothing_beside_the_target():
    s, t = logits(3, 2)
    y = labels(6, 2)
    torch.testing.assert_close(dkd(s, t, y, 1.0, 8.0, 4.0), kd(s, t, 4.0))
    torch.testing.assert_close(dkd(s, t, y, 0.0, 8.0, 4.0), torch.zeros(6, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(seeds, classes, temperatures)
def test_nkd_is_least_where_the_others_are_the_teachers(seed, classes, temperature):
    """Cross entropy over the other classes has its minimum, with no gradient there, at the teacher's proportions."""
    _, t = logits(seed, classes)
    y, s = labels(6, classes), t.clone().requires_grad_()
    others = grad(nkd(s, t, y, 1.0, temperature) - nkd(s, t, y, 0.0, temperature), s)
    torch.testing.assert_close(others, torch.zeros_like(others))


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(3, 30), st.floats(0.05, 0.95), st.floats(0.5, 8))
def test_dist_between_classes_is_zero_for_a_positive_affine_map_of_probabilities(seed, classes, share, temperature):
    _, t = logits(seed, classes)
    p = (t / temperature).softmax(1)
    mixed = share * p + (1 - share) / classes  # a positive affine map that leaves probabilities
    torch.testing.assert_close(
        dist(temperature * mixed.log(), t, 1.0, 0.0, temperature), torch.zeros((), dtype=torch.float64)
    )


def test_dist_is_not_blind_to_affine_logits():
    s, t = logits(0, 10)
    assert dist(2 * t + 1, t, 1.0, 0.0, 4.0) > 1e-3
    assert dist(t + 5, t, 1.0, 1.0, 4.0) < 1e-12  # softmax does not see a shift
    assert dist(s, t, 1.0, 1.0, 4.0) > 1


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(3, 30), st.floats(0.1, 50), st.floats(-50, 50))
@pytest.mark.parametrize("mode", ["std", "zscore"])
def test_standardised_kd_sees_positive_affine_maps_of_a_samples_logits_through_its_1e_7_alone(
    mode, seed, classes, scale, shift
):
    """(a z + b) / (a std z + 1e-7) = z / (std z + 1e-7 / a) + a constant, which softmax does not see."""
    s, t = logits(seed, classes)
    scales = torch.linspace(1, scale, 6, dtype=torch.float64)[:, None]  # another map for each sample
    mapped = kd(standardize(scales * s + shift, mode), standardize(t / scales - shift, mode), 2.0)
    student, teacher = (
        z / (z.std(1, correction=int(mode == "zscore"), keepdim=True) + 1e-7 / a)
        for z, a in ((s, scales), (t, 1 / scales))
    )
    torch.testing.assert_close(mapped, kd(student, teacher, 2.0), rtol=1e-6, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seeds, classes, scales, st.floats(0.05, 4))
def test_renyi_entropy_lies_between_certain_and_uniform_and_falls_with_its_order(seed, classes, scale, order):
    _, z = logits(seed, classes, scale)
    h = renyi_entropy(z, order)
    assert (h >= -1e-9).all()
    assert (h <= math.log(classes) + 1e-9).all()
    assert (renyi_entropy(z, order + 0.1) <= h + 1e-6).all()
    uniform = renyi_entropy(torch.zeros(1, classes, dtype=torch.float64), order)
    assert uniform.item() == pytest.approx(math.log(classes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_renyi_entropy_passes_through_shannons(dtype):
    z = logits(1, 10)[1].to(dtype)
    shannon = torch.distributions.Categorical(logits=z).entropy()
    torch.testing.assert_close(renyi_entropy(z, 1.0), shannon)
    for order in (1 - 2e-4, 1 + 2e-4, 1 - 5e-5, 1 + 5e-5):
        torch.testing.assert_close(renyi_entropy(z, order), shannon, rtol=1e-2, atol=1e-3)


# ----------------------------------------------------------------------------------------- slow references, by hand


def softmax(z) -> list[float]:
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def test_dkd_from_its_definition():
    s, t = logits(5, 7)
    y, temperature, alpha, beta = labels(6, 7), 3.0, 0.5, 6.0
    for i, found in enumerate(dkd(s, t, y, alpha, beta, temperature)):
        k = int(y[i])
        p, q = (softmax([v / temperature for v in z[i].tolist()]) for z in (t, s))
        target = p[k] * math.log(p[k] / q[k]) + (1 - p[k]) * math.log((1 - p[k]) / (1 - q[k]))
        others = [(p[j] / (1 - p[k]), q[j] / (1 - q[k])) for j in range(7) if j != k]
        wanted = temperature**2 * (alpha * target + beta * sum(a * math.log(a / b) for a, b in others))
        assert found.item() == pytest.approx(wanted, rel=1e-9)


def test_nkd_from_its_definition():
    s, t = logits(6, 7)
    y, temperature, gamma = labels(6, 7), 2.0, 1.5
    for i, found in enumerate(nkd(s, t, y, gamma, temperature)):
        k = int(y[i])
        p, q = (softmax(z[i].tolist()) for z in (t, s))
        p_soft, q_soft = ([v ** (1 / temperature) for j, v in enumerate(z) if j != k] for z in (p, q))
        others = sum(a / sum(p_soft) * math.log(b / sum(q_soft)) for a, b in zip(p_soft, q_soft, strict=True))
        assert found.item() == pytest.approx(-p[k] * math.log(q[k]) - gamma * temperature**2 * others, rel=1e-9)


def test_dist_from_its_definition():
    s, t = logits(7, 5)
    p, q = (np.array([softmax([v / 4 for v in row]) for row in z.tolist()]) for z in (t, s))
    inter = 1 - np.mean([pearsonr(q[i], p[i]).statistic for i in range(6)])
    intra = 1 - np.mean([pearsonr(q[:, j], p[:, j]).statistic for j in range(5)])
    assert dist(s, t, 0.7, 1.3, 4.0).item() == pytest.approx(16 * (0.7 * inter + 1.3 * intra), rel=1e-9)


def test_values_by_hand():
    # p_t = (1/2, 1/4, 1/4), p_s = (1/4, 1/2, 1/4), label 0
    t = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    s = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    y = torch.tensor([0])
    tckd = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    nckd = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert dkd(s, t, y, 1.0, 0.0, 1.0).item() == pytest.approx(tckd)
    assert dkd(s, t, y, 0.0, 1.0, 1.0).item() == pytest.approx(nckd)
    assert nkd(s, t, y, 0.0, 1.0).item() == pytest.approx(0.5 * math.log(4))
    others = 0.5 * math.log(3 / 2) + 0.5 * math.log(3)
    assert nkd(s, t, y, 1.0, 1.0).item() == pytest.approx(0.5 * math.log(4) + others)
    # Pearson of (1/4, 1/2, 1/4) and (1/2, 1/4, 1/4): centred (-1, 2, -1)/12 and (2, -1, -1)/12, so -3/6
    assert dist(s, t, 1.0, 0.0, 1.0).item() == pytest.approx(1.5)
    # two samples swap the first two classes: the columns are opposite, the third is constant
    flipped = [1, 0, 2]
    both_t, both_s = torch.cat([t, t[:, flipped]]), torch.cat([s, s[:, flipped]])
    assert dist(both_s, both_t, 0.0, 1.0, 1.0).item() == pytest.approx(1 + 2 / 3)
    assert renyi_entropy(t, 2.0).item() == pytest.approx(-math.log(3 / 8))
    assert renyi_entropy(t, 0.5).item() == pytest.approx(2 * math.log(math.sqrt(0.5) + 1))


def test_standardised_by_hand():
    z = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert standardize(z, "none") is z
    torch.testing.assert_close(standardize(z, "zscore"), torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(standardize(z, "std"), z * math.sqrt(3 / 2))


def test_zscore_is_softer_than_std_by_the_degree_of_freedom():
    s, t = logits(8, 10)
    soft = kd(standardize(s, "zscore"), standardize(t, "zscore"), 1.0)
    hard = kd(standardize(s, "std"), standardize(t, "std"), math.sqrt(10 / 9)) / (10 / 9)
    torch.testing.assert_close(soft, hard, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------ every term


CASES = [(name, mode) for name in LOGIT_TERMS for mode in ("none", "std", "zscore")]


@pytest.mark.parametrize(("name", "mode"), CASES)
class TestEveryLogitTerm:
    def test_gradient_is_right_and_the_students_only(self, name, mode):
        s, t = logits(2, 5)
        t.requires_grad_()
        made = term(name, standardize=mode)
        assert torch.autograd.gradcheck(lambda z: made(pair(z, t, labels(6, 5))), (s.requires_grad_(),))
        made(pair(s, t, labels(6, 5))).sum().backward()
        assert t.grad is None

    @each("dtype", [torch.bfloat16, torch.float16])
    def test_float32_inside_whatever_comes_in(self, name, mode, dtype):
        s, t = (z.to(dtype) for z in logits(2, 10))
        made = term(name, standardize=mode)
        found = made(pair(s, t, labels(6, 10)))
        assert found.dtype == torch.float32
        assert torch.equal(found, made(pair(s.float(), t.float(), labels(6, 10))))

    @each("size", [1e2, 1e4, -1e4])
    def test_finite_for_extreme_logits(self, name, mode, size):
        s = torch.tensor([[size, 0.0, 0.0], [0.0, 0.0, 0.0], [size, size, 1.0]], requires_grad=True)
        t = torch.tensor([[0.0, size, 0.0], [size, -size, 0.0], [0.0, 0.0, 0.0]])
        for y in range(3):
            value = term(name, standardize=mode)(pair(s, t, torch.full((3,), y)))
            assert torch.isfinite(value).all()
            assert torch.isfinite(grad(value, s)).all()

    def test_one_value_per_sample_each_on_its_own_or_one_for_the_batch(self, name, mode):
        s, t = logits(4, 10)
        made, y = term(name, standardize=mode), labels(6, 10)
        whole = made(pair(s, t, y))
        if not made.needed.per_sample:
            assert whole.shape == ()
            return
        alone = [made(pair(s[i : i + 1], t[i : i + 1], y[i : i + 1])) for i in range(6)]
        torch.testing.assert_close(whole, torch.cat(alone))

    def test_a_teacher_is_needed(self, name, mode):
        with pytest.raises(KdrunError, match=rf"loss\.{name} needs a teacher"):
            term(name, standardize=mode)(pair(S, None, torch.tensor([0])))


@pytest.mark.parametrize("name", ["dkd", "nkd", "rld"])
def test_terms_that_set_the_target_apart_say_what_they_need(name):
    with pytest.raises(KdrunError, match=rf"loss\.{name} needs labels, and this stream has none"):
        term(name)(pair(S, T, None))


@pytest.mark.parametrize("name", ["dkd", "nkd", "rld"])
def test_of_mixed_labels_each_of_the_two_classes_counts_by_its_share(name):
    s, t = logits(4, 10)
    made, y, other = term(name), labels(6, 10), labels(6, 10).roll(1)
    share = torch.linspace(0, 1, 6)
    one_hot = torch.eye(10)
    mixed = share[:, None] * one_hot[y] + (1 - share)[:, None] * one_hot[other]
    expected = share * made(pair(s, t, y)) + (1 - share) * made(pair(s, t, other))
    torch.testing.assert_close(made(pair(s, t, mixed)), expected)
    torch.testing.assert_close(made(pair(s, t, one_hot[y])), made(pair(s, t, y)))


def test_the_weight_of_dkd_rises_over_its_share_of_the_run():
    def at(progress: float, **fields) -> float:
        return term("dkd", **fields)(pair(S, T, torch.tensor([0]), progress)).item()

    whole = dkd(S, T, torch.tensor([0]), 1.0, 8.0, 4.0).item()
    assert at(0.0) == 0
    assert at(10 / 240) == pytest.approx(whole / 2)
    assert at(20 / 240) == at(0.99) == pytest.approx(whole)
    assert at(0.25, warmup=0.5) == pytest.approx(whole / 2)
    assert at(0.0, warmup=0.0) == pytest.approx(whole)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: dkd(S, T, torch.tensor([0]), 1.0, 8.0, 0.0), lambda: nkd(S, T, torch.tensor([0]), 1.5, -1.0),
        lambda: dist(S, T, 1.0, 1.0, math.nan), lambda: renyi_entropy(S, 0.0),
        lambda: dkd(S, T, torch.full((1, 4), 0.25), 1.0, 8.0, 4.0),
    ],
)  # fmt: skip
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        bad()


# --------------------------------------------------------------------------------------------- what is logged


@pytest.mark.parametrize(
    ("name", "fields", "order"),
    [
        ("kd", {"temperature": 4.0}, 0.25),
        ("kd", {"temperature": 1.0}, 1.0),
        ("ttm", {"gamma": 0.3}, 0.3),
        ("wttm", {}, 0.1),
    ],
)
def test_the_entropy_that_ttm_regularises_is_told(name, fields, order):
    s, t = logits(9, 10)
    told = term(name, **fields).metrics(pair(s, t))
    assert told.keys() == {"renyi_entropy"}
    torch.testing.assert_close(told["renyi_entropy"], renyi_entropy(s, order).mean())


@each("name", sorted(_REGISTRY["loss"]))
def test_every_term_says_what_it_is(name):
    """scripts/explain.py shows it; a coefficient that the equation does not name could not be understood."""
    cls = lookup("loss", name, "")
    assert cls.source
    for field in set(cls.Config.model_fields) - {"name", "weight", "standardize"}:
        assert field in cls.equation, field
