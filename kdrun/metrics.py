"""Accuracy and calibration of logits, in float64, on the device where the logits are (on the CPU for mps)."""

import torch
from torch import Tensor


def evaluate_logits(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """All metrics of (N, C) logits (or log-probabilities) against (N,) targets, as float64 scalars.

    Accuracies and ECE are fractions in [0, 1]; nll is in nats. All are NaN where a logit is NaN.
    """
    if logits.device.type == "mps":  # has no float64
        logits, target = logits.cpu(), target.cpu()
    log_p = logits.double().log_softmax(1)
    confidence, predicted = log_p.exp().max(1)
    correct = (predicted == target).double()
    out = {
        "top1": correct.mean(),
        "nll": -log_p.gather(1, target[:, None]).mean(),
        "ece": expected_calibration_error(confidence, correct),
        "confidence": confidence.mean(),
    }
    if logits.shape[1] > 5:
        out["top5"] = (log_p.topk(5, 1).indices == target[:, None]).any(1).double().mean()
    broken = log_p.isnan().any()  # an argmax of NaNs would look like a prediction
    return {name: torch.where(broken, torch.nan, value) for name, value in out.items()}


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> Tensor:
    """Sum over bins of share * |accuracy - confidence|; equal-width bins (lo, hi] (Guo et al. 2017, arXiv 1706.04599).

    Args:
        confidence: (N,) largest probability.
        correct: (N,) 1 where the prediction is right.
    """
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, which, (correct - confidence).double())
    return gap.abs().sum() / len(confidence)
