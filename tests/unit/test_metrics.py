"""Metrics against golden values, a plain loop, scikit-learn and torchmetrics."""

import itertools
import math

import numpy as np
import pytest
import torch

from kdrun.metrics import (
    classwise_calibration_error,
    compare_with_teacher,
    equal_mass_calibration_error,
    evaluate_logits,
    expected_calibration_error,
    fit_temperature,
    overconfidence_error,
    reliability_bins,
    risk_coverage,
    risk_curve,
)
from kdrun.training.evaluator import Evaluator


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(n=500, classes=10, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def test_golden_calibration_error():
    confidence, correct = float64([0.95, 0.9, 0.85, 0.62, 0.55, 0.3]), float64([1, 1, 0, 1, 0, 0])
    assert expected_calibration_error(confidence, correct).item() == pytest.approx(0.371667, abs=5e-7)
    assert overconfidence_error(confidence, correct).item() == pytest.approx(0.185833, abs=5e-7)
    assert (confidence.mean() - correct.mean()).item() == pytest.approx(0.195)


def test_overconfidence_by_hand():
    confidence, correct = float64([0.90, 0.92, 0.30]), float64([1, 0, 1])  # bins 14, 14 and 5
    assert overconfidence_error(confidence, correct).item() == pytest.approx(2 / 3 * 0.91 * (0.91 - 0.5))
    assert overconfidence_error(confidence, torch.ones(3)).item() == 0  # under-confidence is no error here


def test_bins_of_a_diagram_are_those_of_ece():
    confidence, correct = float64([0.90, 0.92, 0.30]), float64([1, 0, 1])
    size, conf, acc = reliability_bins(confidence, correct)
    assert (size[13].item(), conf[13].item(), acc[13].item()) == pytest.approx((2, 0.91, 0.5))
    assert (size[4].item(), conf[4].item(), acc[4].item()) == pytest.approx((1, 0.3, 1))
    assert size.sum() == 3
    assert conf[size == 0].tolist() == acc[size == 0].tolist() == [0] * 13  # of an empty bin
    logits, target = random_logits()
    confidence, predicted = logits.double().softmax(1).max(1)
    correct = (predicted == target).double()
    size, conf, acc = reliability_bins(confidence, correct)
    ece = (size * (conf - acc).abs()).sum() / len(target)
    torch.testing.assert_close(ece, expected_calibration_error(confidence, correct))


def test_risk_by_hand():
    assert risk_curve(float64([1, 0, 1, 0])).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert risk_curve(float64([0])).tolist() == [1]


@pytest.mark.parametrize("edge", range(1, 16))
def test_bins_hold_their_upper_edge(edge):
    top = edge / 15
    together = expected_calibration_error(float64([top, top - 0.01]), float64([1, 0])).item()
    assert together == pytest.approx(abs(1 - (2 * top - 0.01)) / 2)
    apart = expected_calibration_error(float64([top, top + 0.01]), float64([1, 0])).item()
    assert edge == 15 or apart == pytest.approx(((1 - top) + (top + 0.01)) / 2)


def test_confidences_of_zero_and_one_have_bins():
    assert expected_calibration_error(float64([0.0, 1.0]), float64([1, 0])).item() == 1
    assert expected_calibration_error(float64([1.0, 1.0]), float64([1, 0])).item() == 0.5


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_the_loop_over_bins(bins):
    rng = np.random.default_rng(bins)
    confidence, correct = rng.random(400), rng.integers(0, 2, 400)
    expected = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    got = expected_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct), bins)
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_accuracies_and_nll_agree_with_sklearn():
    from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

    logits, target = random_logits()
    got = {name: value.item() for name, value in evaluate_logits(logits, target).items()}
    probability = logits.double().softmax(1).numpy()
    classes = list(range(10))
    assert got["top1"] == pytest.approx(accuracy_score(target, probability.argmax(1)))
    assert got["top5"] == pytest.approx(top_k_accuracy_score(target, probability, k=5, labels=classes))
    assert got["nll"] == pytest.approx(log_loss(target, probability, labels=classes), rel=1e-9)
    assert got["confidence"] == pytest.approx(probability.max(1).mean())


def test_calibration_error_agrees_with_torchmetrics():
    calibration = pytest.importorskip("torchmetrics.functional.classification").multiclass_calibration_error
    logits, target = random_logits()
    expected = calibration(logits.double().softmax(1), target, num_classes=10, n_bins=15, norm="l1")
    assert evaluate_logits(logits, target)["ece"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_log_probabilities_give_what_logits_give():
    logits, target = random_logits()
    shifted = logits.double() + torch.linspace(-50, 50, len(logits), dtype=torch.float64)[:, None]
    expected = evaluate_logits(logits, target)
    for form in (logits.double().log_softmax(1), shifted):
        for name, value in evaluate_logits(form, target).items():
            assert value.item() == pytest.approx(expected[name].item(), rel=1e-9, abs=1e-12), name


def test_log_probabilities_may_hold_zeros():
    log_p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]).log()
    got = evaluate_logits(log_p, torch.tensor([0, 1]))
    assert got["nll"].item() == pytest.approx(math.log(2) / 2)
    assert got["confidence"].item() == pytest.approx(0.75)
    assert evaluate_logits(log_p, torch.tensor([2, 1]))["nll"].item() == math.inf


def test_one_sample():
    got = evaluate_logits(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
    p = np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum()
    gap = 1 - p[0]
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {
            "top1": 1.0, "nll": -math.log(p[0]), "brier": gap**2 + p[1] ** 2 + p[2] ** 2, "ece": gap,
            "ece_equal_mass": gap, "ece_classwise": (gap + p[1] + p[2]) / 3, "overconfidence": 0.0,
            "confidence": p[0], "confidence_gap": -gap, "aurc": 0.0, "e_aurc": 0.0, "entropy": -(p * np.log(p)).sum(),
        }
    )  # fmt: skip


def test_nan_is_nan_everywhere_and_never_a_prediction():
    logits, target = random_logits(20)
    logits[3, 2] = math.nan
    assert all(value.isnan() for value in evaluate_logits(logits, target).values())
    assert all(value.isnan() for value in compare_with_teacher(logits, random_logits(20)[0]).values())
    assert all(value.isnan() for value in compare_with_teacher(random_logits(20)[0], logits).values())
    assert fit_temperature(logits, target).isnan()


def test_a_single_class_of_targets_has_every_metric():
    logits, _ = random_logits(50)
    got = evaluate_logits(logits, torch.full((50,), 3))
    assert all(value.isfinite() for value in got.values())
    assert fit_temperature(logits, torch.full((50,), 3)).isfinite()


def test_brier_score_agrees_with_sklearn_and_reaches_its_bounds():
    from sklearn.metrics import brier_score_loss

    logits, target = random_logits(classes=2)
    probability = logits.double().softmax(1).numpy()
    expected = 2 * brier_score_loss(target, probability[:, 1])  # of two classes it sums one
    assert evaluate_logits(logits, target)["brier"].item() == pytest.approx(expected)
    sure = torch.tensor([[100.0, -100.0, 0.0]])
    assert evaluate_logits(sure, torch.tensor([0]))["brier"].item() == pytest.approx(0)
    assert evaluate_logits(sure, torch.tensor([1]))["brier"].item() == pytest.approx(2)


def test_entropy_agrees_with_scipy():
    from scipy.stats import entropy

    logits, target = random_logits()
    expected = entropy(logits.double().softmax(1).numpy(), axis=1).mean()
    assert evaluate_logits(logits, target)["entropy"].item() == pytest.approx(expected)
    uniform = evaluate_logits(torch.zeros(2, 8), torch.tensor([0, 1]))
    assert uniform["entropy"].item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("n", [1, 7, 15, 16, 100, 400])
def test_equal_mass_bins_are_those_of_array_split(n):
    rng = np.random.default_rng(n)
    confidence, correct = np.sort(rng.random(n))[::-1].copy(), rng.integers(0, 2, n)
    # array_split puts the longer parts first, ranks spread them: where n is a multiple of 15 the bins are the same.
    edges = [math.ceil(k * n / 15) for k in range(16)]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]
    if n % 15 == 0:
        assert [len(part) for part in np.array_split(confidence, 15)] == [part.stop - part.start for part in parts]
    assert {part.stop - part.start for part in parts} <= {n // 15, n // 15 + 1}
    expected = sum(abs(correct[part].sum() - confidence[part].sum()) for part in parts) / n
    got = equal_mass_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_classwise_calibration_error_is_the_mean_of_binary_ones():
    binary = pytest.importorskip("torchmetrics.functional.classification").binary_calibration_error
    logits, target = random_logits()
    p = logits.double().softmax(1)
    expected = np.mean(
        [binary(p[:, k].contiguous(), (target == k).long(), n_bins=15, norm="l1").item() for k in range(10)]
    )
    assert classwise_calibration_error(p, target).item() == pytest.approx(expected, abs=1e-6)
    assert evaluate_logits(logits, target)["ece_classwise"].item() == pytest.approx(expected, abs=1e-6)


def test_area_under_risk_coverage_by_hand():
    # risks 0, 1/2, 1/3, 2/4; the best order of the same errors has 0, 0, 1/3, 2/4
    aurc, e_aurc = risk_coverage(float64([1, 0, 1, 0]))
    assert aurc.item() == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert e_aurc.item() == pytest.approx(aurc.item() - (0.5 + 0.5 * math.log(0.5)))
    assert [v.item() for v in risk_coverage(float64([1, 1]))] == [0, 0]
    assert [v.item() for v in risk_coverage(float64([0, 0]))] == [1, 0]
    perfect = risk_coverage(float64([1] * 9000 + [0] * 1000))
    assert perfect[1].item() == pytest.approx(0, abs=1e-4)
    assert perfect[1].item() >= 0
    assert risk_coverage(float64([0] * 1000 + [1] * 9000))[1].item() > 0.2


def test_agreement_and_divergence_from_the_teacher():
    from scipy.special import rel_entr

    student, teacher = random_logits()[0], random_logits(seed=1)[0]
    p_s, p_t = (z.double().softmax(1).numpy() for z in (student, teacher))
    got = compare_with_teacher(student, teacher)
    assert got["teacher_agreement"].item() == pytest.approx((p_s.argmax(1) == p_t.argmax(1)).mean())
    assert got["teacher_kl"].item() == pytest.approx(rel_entr(p_t, p_s).sum(1).mean())
    same = compare_with_teacher(student + 3, student)
    assert (same["teacher_agreement"].item(), same["teacher_kl"].item()) == pytest.approx((1, 0), abs=1e-6)
    sure, half = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]]) - math.log(2)
    assert compare_with_teacher(half, sure)["teacher_kl"].item() == pytest.approx(math.log(2))
    assert compare_with_teacher(sure, half)["teacher_kl"].item() == math.inf


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_temperature_is_the_minimum_that_scipy_finds(true):
    from scipy.optimize import minimize_scalar

    logits, _ = random_logits(2000)
    target = torch.distributions.Categorical(logits=logits / true).sample()
    log_p = (logits.double()).log_softmax(1)

    def nll(log_t):
        return torch.nn.functional.cross_entropy(log_p / math.exp(log_t), target).item()

    expected = math.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(logits, target).item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(true, rel=0.15)


def test_temperature_has_bounds_where_the_likelihood_has_no_maximum():
    logits, _ = random_logits(200)
    assert 0.01 <= fit_temperature(logits, logits.argmax(1)).item() < 0.1
    assert 10 < fit_temperature(logits, logits.argmin(1)).item() <= 100
    assert fit_temperature(torch.tensor([[0.0, -math.inf]]), torch.tensor([1])).isnan()
    assert fit_temperature(torch.tensor([[0.0, -math.inf], [0.0, 0.0]]), torch.tensor([0, 0])).isfinite()


def evaluator(n, splits=("val", "test")):
    images, index = torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n)
    return Evaluator({name: (images, index, random_logits(n, seed=k)[1]) for k, name in enumerate(splits)}, n)


def test_the_last_evaluation_adds_the_teacher_and_the_temperature():
    n, splits, nets = 60, ("val", "test"), ("student", "teacher")
    logits = {(s, net): random_logits(n, seed=5 * i + j)[0] for i, s in enumerate(splits) for j, net in enumerate(nets)}
    made = evaluator(n)
    closed, got = made.metrics(logits), made.final_metrics(logits)
    assert {name: got[name] for name in closed} == closed
    temperature = fit_temperature(logits["val", "student"], made.splits["val"][2])
    assert got["val/student/temperature"] == temperature.item()
    scaled = evaluate_logits(logits["test", "student"].double() / temperature, made.splits["test"][2])
    assert got["test/student/scaled_ece"] == scaled["ece"].item()
    extra = {name for name in got if name not in closed}
    changed = {f"scaled_{name}" for name in scaled} - {"scaled_top1", "scaled_top5"}
    assert extra == {
        *(f"{split}/student/{name}" for split in splits for name in ("teacher_agreement", "teacher_kl")),
        *(f"val/{net}/temperature" for net in nets),
        *(f"test/{net}/{name}" for net in nets for name in changed),
    }


def test_without_validation_images_no_temperature_is_fitted():
    made, logits = evaluator(60, ["test"]), {("test", "student"): random_logits(60)[0]}
    assert made.final_metrics(logits) == made.metrics(logits)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    got = evaluate_logits(logits, torch.tensor([0, 0]))
    assert got["nll"].item() == pytest.approx(1e4)
    assert got["ece"].item() == pytest.approx(0.5)


def test_top5_needs_more_than_five_classes():
    assert "top5" not in evaluate_logits(*random_logits(classes=5))
    assert "top5" in evaluate_logits(*random_logits(classes=6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_metrics_are_float64_scalars(dtype):
    logits, target = random_logits()
    for value in evaluate_logits(logits.to(dtype), target).values():
        assert value.dtype == torch.float64
        assert value.shape == ()
