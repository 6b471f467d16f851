"""Metrics against golden values, a plain loop, scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch

from kdrun.metrics import evaluate_logits, expected_calibration_error


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(n=500, classes=10, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def test_golden_calibration_error():
    confidence, correct = float64([0.95, 0.9, 0.85, 0.62, 0.55, 0.3]), float64([1, 1, 0, 1, 0, 0])
    assert expected_calibration_error(confidence, correct).item() == pytest.approx(0.371667, abs=5e-7)


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
    confidence = math.exp(2) / (math.exp(2) + 1 + math.exp(-1))
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {"top1": 1.0, "nll": -math.log(confidence), "ece": 1 - confidence, "confidence": confidence}
    )


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
