"""Losses against golden values (double precision, computed by hand) and their defining properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import kdrun
from kdrun.losses.labels import cross_entropy
from kdrun.losses.logits import kd, power_sum, ttm, wttm
from kdrun.losses.robust import (
    generalized_cross_entropy,
    mean_absolute_error,
    normalized_cross_entropy,
    reverse_cross_entropy,
    symmetric_cross_entropy,
)

T = torch.tensor([[3.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
S = torch.tensor([[1.0, 0.5, -0.5, 0.0]], dtype=torch.float64)

GOLDEN = {  # gamma: U, D(p_T || q), U * D
    0.5: (1.573677, 0.056390, 0.088739),
    0.25: (2.336084, 0.037360, 0.087275),
    0.1: (3.170608, 0.090704, 0.287586),
    1.0: (1.0, 0.325756, 0.325756),
}


@pytest.mark.parametrize("gamma", GOLDEN)
def test_ttm_and_wttm_golden(gamma):
    u, d, weighted = GOLDEN[gamma]
    assert power_sum(T, gamma).item() == pytest.approx(u, abs=1e-6)
    assert ttm(S, T, gamma).item() == pytest.approx(d, abs=1e-6)
    assert wttm(S, T, gamma).item() == pytest.approx(weighted, abs=1e-6)


@pytest.mark.parametrize(("temperature", "value"), [(2.0, 0.518633), (4.0, 0.570361)])
def test_kd_golden(temperature, value):
    assert kd(S, T, temperature).item() == pytest.approx(value, abs=1e-6)


def test_cross_entropy_golden_and_soft_targets():
    logits = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    assert cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(0.169846, abs=1e-6)
    soft = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    by_hand = -(soft * logits.log_softmax(1)).sum()
    assert cross_entropy(logits, soft).item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_public_under_kdrun_losses():
    assert kdrun.losses.kd is kd
    assert kdrun.losses.wttm is wttm


LOSSES = {
    "kd": lambda s, t: kd(s, t, 4.0),
    "ttm": lambda s, t: ttm(s, t, 0.3),
    "wttm": lambda s, t: wttm(s, t, 0.3),
    "cross_entropy": lambda s, t: cross_entropy(s, t.argmax(1)),
    "sce": lambda s, t: symmetric_cross_entropy(s, t.argmax(1), 1.0, 0.1),
    "mae": lambda s, t: mean_absolute_error(s, t.argmax(1)),
    "nce": lambda s, t: normalized_cross_entropy(s, t.argmax(1)),
    "gce": lambda s, t: generalized_cross_entropy(s, t.argmax(1), 0.7),
}


@pytest.mark.parametrize("name", LOSSES)
def test_one_value_per_sample_each_on_its_own(name):
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    whole = LOSSES[name](student, teacher)
    assert whole.shape == (5,)
    alone = torch.cat([LOSSES[name](student[i : i + 1], teacher[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_whatever_comes_in(name, dtype):
    student, teacher = torch.randn(4, 10).to(dtype), torch.randn(4, 10).to(dtype)
    got = LOSSES[name](student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, LOSSES[name](student.float(), teacher.float()))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e2, 1e4, -1e4])
def test_finite_for_extreme_logits(name, size):
    student = torch.tensor([[size, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, size, 0.0], [size, -size, 0.0]])
    value = LOSSES[name](student, teacher)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ["kd", "ttm", "wttm"])
def test_gradient_to_the_student_only_and_right(name):
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    LOSSES[name](student, teacher).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher.detach()), (student,))


def test_kd_gradient_by_hand():
    """d/dz_s of T^2 KL at T is T (softmax(z_s/T) - softmax(z_t/T))."""
    student = S.clone().requires_grad_()
    kd(student, T, 3.0).sum().backward()
    torch.testing.assert_close(student.grad, 3.0 * ((S / 3).softmax(1) - (T / 3).softmax(1)))


def test_ttm_gradient_by_hand():
    """The student stands at temperature 1: softmax(z_s) - softmax(gamma z_t)."""
    student = S.clone().requires_grad_()
    ttm(student, T, 0.25).sum().backward()
    torch.testing.assert_close(student.grad, S.softmax(1) - (0.25 * T).softmax(1))


@pytest.mark.parametrize("name", ["kd", "ttm"])
def test_zero_when_the_student_is_what_is_asked(name):
    matched = {"kd": T, "ttm": 0.3 * T}[name]
    torch.testing.assert_close(LOSSES[name](matched, T), torch.zeros(1, dtype=torch.float64))


def test_ttm_at_gamma_one_is_plain_kl():
    student, teacher = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    plain = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(ttm(student, teacher, 1.0), plain)
    torch.testing.assert_close(wttm(student, teacher, 1.0), plain)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 50), st.floats(0.05, 1.0), st.integers(0, 1000), st.floats(0.1, 20))
def test_power_sum_lies_between_certain_and_uniform(classes, gamma, seed, scale):
    logits = torch.randn(8, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    u = power_sum(logits, gamma)
    assert (u >= 1 - 1e-9).all()
    assert (u <= classes ** (1 - gamma) + 1e-9).all()
    uniform = power_sum(torch.zeros(1, classes, dtype=torch.float64), gamma)
    assert uniform.item() == pytest.approx(classes ** (1 - gamma))


def test_kd_is_ttm_with_a_renyi_term():
    """D(p_T||q) = T D(p_T||q_T) - (T-1) H_{1/T}(q) + (T-1) H(p_T), the identity of the TTM paper."""
    temperature = 4.0
    p, q, q_t = (T / temperature).softmax(1), S.softmax(1), (S / temperature).softmax(1)
    order = 1 / temperature
    renyi = (q**order).sum(1).log() / (1 - order)
    shannon = -(p * p.log()).sum(1)
    softened = (p * (p.log() - q_t.log())).sum(1)
    right = temperature * softened - (temperature - 1) * renyi + (temperature - 1) * shannon
    torch.testing.assert_close(ttm(S, T, order), right)


@pytest.mark.parametrize(("function", "bad"), [(kd, 0.0), (kd, -1.0), (kd, math.nan), (ttm, 0.0), (ttm, -0.5)])
def test_impossible_temperatures_are_refused(function, bad):
    with pytest.raises(ValueError, match="must be above 0"):
        function(S, T, bad)


SCE_LOGITS, SCE_TARGET = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64), torch.tensor([0])


@pytest.mark.parametrize(
    ("log_zero", "rce", "tenth", "hundredth"),
    [(-4.0, 0.624821, 0.232328, 0.176094), (math.log(1e-4), 1.438704, 0.313716, 0.184233)],
)
def test_symmetric_cross_entropy_golden(log_zero, rce, tenth, hundredth):
    assert reverse_cross_entropy(SCE_LOGITS, SCE_TARGET, log_zero).item() == pytest.approx(rce, abs=1e-6)
    for beta, value in ((0.1, tenth), (0.01, hundredth)):
        found = symmetric_cross_entropy(SCE_LOGITS, SCE_TARGET, 1.0, beta, log_zero).item()
        assert found == pytest.approx(value, abs=1e-6)


def test_mae_is_reverse_cross_entropy_with_log_zero_minus_2():
    assert torch.allclose(
        mean_absolute_error(SCE_LOGITS, SCE_TARGET), reverse_cross_entropy(SCE_LOGITS, SCE_TARGET, -2.0)
    )


@pytest.mark.parametrize(
    ("loss", "total"),
    [
        (mean_absolute_error, 2 * (5 - 1)),
        (normalized_cross_entropy, 1.0),
        (lambda s, t: reverse_cross_entropy(s, t, -3.0), 3.0 * 4),
    ],
    ids=["mae", "nce", "rce"],
)
def test_symmetric_losses_sum_to_a_constant_over_the_classes(loss, total):
    logits = torch.randn(64, 5, dtype=torch.float64) * 4
    sums = sum(loss(logits, torch.full((64,), j)) for j in range(5))
    assert torch.allclose(sums, torch.full((64,), total, dtype=torch.float64), atol=1e-9)


def test_cross_entropy_is_not_symmetric():
    logits = torch.randn(64, 5, dtype=torch.float64) * 4
    sums = sum(cross_entropy(logits, torch.full((64,), j)) for j in range(5))
    assert sums.std() > 1


def test_generalized_cross_entropy_lies_between_cross_entropy_and_mae():
    logits, target = torch.randn(64, 5, dtype=torch.float64), torch.arange(64) % 5
    assert torch.allclose(generalized_cross_entropy(logits, target, 1.0), mean_absolute_error(logits, target) / 2)
    assert torch.allclose(generalized_cross_entropy(logits, target, 1e-6), cross_entropy(logits, target), atol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        mean_absolute_error, normalized_cross_entropy,
        lambda s, t: generalized_cross_entropy(s, t, 0.7), lambda s, t: symmetric_cross_entropy(s, t, 1.0, 0.1),
    ],
    ids=["mae", "nce", "gce", "sce"],
)  # fmt: skip
def test_a_one_hot_target_is_the_class_index(loss):
    logits, target = torch.randn(32, 6, dtype=torch.float64) * 3, torch.arange(32) % 6
    assert torch.allclose(loss(logits, F.one_hot(target, 6).double()), loss(logits, target))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: reverse_cross_entropy(SCE_LOGITS, SCE_TARGET, 0.0),
        lambda: generalized_cross_entropy(SCE_LOGITS, SCE_TARGET, 1.5),
    ],
)
def test_robust_losses_refuse_nonsense(bad):
    with pytest.raises(ValueError, match="must"):
        bad()
