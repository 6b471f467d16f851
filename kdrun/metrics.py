"""Accuracy, calibration and ranking of logits, in float64, on the device where the logits are (on the CPU for mps).

Notation, for N >= 1 samples and K classes: p_i = softmax(z_i), confidence c_i = max_k p_ik, correct_i = 1 where the
largest probability is the target's. B_m are bins of samples, |B_m| their sizes, conf_m and acc_m the means of c_i and
correct_i in them. An empty bin adds 0.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15  # of Guo et al. 2017 and the tables after them
TEMPERATURES = 100.0  # a fitted temperature lies between 1/100 and 100


def evaluate_logits(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """All metrics in closed form of (N, K) logits (or log-probabilities) against (N,) targets, as float64 scalars.

    All are NaN where a logit is NaN. Units:

    - top1, top5 (where K > 5), confidence (mean of c_i): fractions in [0, 1]. confidence_gap = confidence - top1, in
      [-1, 1], above 0 where the network is overconfident.
    - nll, -mean log p_i,target, and entropy, the mean of -sum_k p_ik log p_ik: nats.
    - brier = mean of sum_k (p_ik - [k = target_i])^2, in [0, 2] (Brier 1950; some divide by K, we do not).
    - ece, ece_equal_mass, ece_classwise, overconfidence: see the functions of this file; fractions in [0, 1].
    - aurc, e_aurc: see `risk_coverage`; fractions in [0, 1].
    """
    logits, target = _float64(logits, target)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    confidence, predicted = p.max(1)
    correct = (predicted == target).double()
    log_likelihood = log_p.gather(1, target[:, None]).squeeze(1)
    top1, mean_confidence = correct.mean(), confidence.mean()
    order = confidence.argsort(descending=True, stable=True)
    ranked = correct[order]
    aurc, e_aurc = risk_coverage(ranked)
    out = {
        "top1": top1,
        "nll": -log_likelihood.mean(),
        "brier": (p.square().sum(1) - 2 * log_likelihood.exp() + 1).mean(),
        "ece": expected_calibration_error(confidence, correct),
        "ece_equal_mass": equal_mass_calibration_error(confidence[order], ranked),
        "ece_classwise": classwise_calibration_error(p, target),
        "overconfidence": overconfidence_error(confidence, correct),
        "confidence": mean_confidence,
        "confidence_gap": mean_confidence - top1,
        "aurc": aurc,
        "e_aurc": e_aurc,
        "entropy": torch.special.entr(p).sum(1).mean(),
    }
    if logits.shape[1] > 5:
        out["top5"] = (_ranks(log_p, target) < 5).logical_or(correct.bool()).double().mean()
    broken = log_p.isnan().any()  # an argmax of NaNs would look like a prediction
    return {name: torch.where(broken, torch.nan, value) for name, value in out.items()}


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Tensor:
    """Sum over bins of |B_m|/N |acc_m - conf_m|; equal-width bins (lo, hi] (Guo et al. 2017, arXiv 1706.04599).

    For N = 1 this is |correct - confidence|. Confidence 0 belongs to the first bin.

    Args:
        confidence: (N,) largest probability.
        correct: (N,) 1 where the prediction is right.
    """
    gap = _sums(_equal_width(confidence, bins), bins, correct - confidence)
    return gap.abs().sum() / len(confidence)


def equal_mass_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Tensor:
    """As ECE, with bins of N/bins samples in the order of confidence (Nixon et al. 2019, arXiv 1904.01685).

    Sizes differ by at most one; with N < bins each sample has a bin, and the others are empty. Equal confidences may
    be parted by a bin's edge.

    Args:
        confidence: (N,), sorted, either way.
        correct: (N,) in the same order.
    """
    rank = torch.arange(len(confidence), device=confidence.device)
    gap = _sums(rank * bins // len(confidence), bins, correct - confidence)
    return gap.abs().sum() / len(confidence)


def classwise_calibration_error(p: Tensor, target: Tensor, bins: int = BINS) -> Tensor:
    """1/K sum_k sum_m |B_mk|/N |share of class k in B_mk - mean of p_ik in B_mk|, equal-width bins of p_ik for each k.

    Kull et al. 2019 (arXiv 1910.12656). A class without samples counts by the probability that it gets.

    Args:
        p: (N, K) probabilities.
        target: (N,) int64.
    """
    n, classes = p.shape
    cell = _equal_width(p, bins) * classes + torch.arange(classes, device=p.device)
    gap = p.scatter_add(1, target[:, None], torch.full_like(p[:, :1], -1))
    return _sums(cell.flatten(), bins * classes, gap.flatten()).abs().sum() / (n * classes)


def overconfidence_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Tensor:
    """Sum over bins of |B_m|/N conf_m max(conf_m - acc_m, 0), bins of ECE (Thulasidasan et al. 2019, arXiv 1905.11001).

    Shapes as in `expected_calibration_error`.
    """
    size, conf, acc = _bin_sums(confidence, correct, bins)
    return (conf * (conf - acc).clamp(min=0) / size.clamp(min=1)).sum() / len(confidence)


def reliability_bins(confidence: Tensor, correct: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Size, mean confidence and accuracy of each bin of ECE, (bins,) float64 each; an empty bin has 0, 0, 0.

    Shapes as in `expected_calibration_error`.
    """
    size, conf, acc = _bin_sums(confidence, correct, bins)
    return size, conf / size.clamp(min=1), acc / size.clamp(min=1)


def risk_curve(correct: Tensor) -> Tensor:
    """risk(n) for n = 1..N, (N,): the share of errors among the n most confident samples.

    Args:
        correct: (N,) float64, sorted by confidence, the highest first.
    """
    return (1 - correct).cumsum(0) / torch.arange(1, len(correct) + 1, device=correct.device)


def risk_coverage(correct: Tensor) -> tuple[Tensor, Tensor]:
    """AURC and E-AURC (Geifman et al. 2019, arXiv 1805.08206), from the most to the least confident sample.

    AURC = 1/N sum_n risk(n), of `risk_curve`. E-AURC = AURC minus that of a
    perfect order at the same error r, r + (1 - r) log(1 - r). Samples of equal confidence count in the order given.

    Args:
        correct: (N,) float64, sorted by confidence, the highest first.
    """
    aurc = risk_curve(correct).mean()
    accuracy = correct.mean()
    return aurc, aurc - (1 - accuracy + torch.special.xlogy(accuracy, accuracy))


def compare_with_teacher(logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    """How far a student predicts what its teacher predicts (fidelity: Stanton et al. 2021, arXiv 2106.05945).

    teacher_agreement: share of samples with the same most probable class, in [0, 1]. teacher_kl: the mean of
    KL(p_teacher || p_student) at temperature 1, in nats; infinite where the student rules out what the teacher does
    not. Both are NaN where a logit is NaN.

    Args:
        logits: (N, K), the student's.
        teacher_logits: (N, K).
    """
    log_s, log_t = (z.log_softmax(1) for z in _float64(logits, teacher_logits))
    kl = kl_divergence(log_t, log_s).mean()
    agreement = (log_s.argmax(1) == log_t.argmax(1)).double().mean()
    broken = log_s.isnan().any() | log_t.isnan().any()
    return {
        "teacher_agreement": torch.where(broken, torch.nan, agreement),
        "teacher_kl": torch.where(broken, torch.nan, kl),
    }


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k (log p_k - log q_k) of each row, nats; what p rules out adds 0.

    Args:
        log_p, log_q: (N, K) log-probabilities.

    Returns:
        (N,).
    """
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(1)


def confusion_matrix(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """(K, K) int64: how many samples of class i (row) were taken for class j (column).

    Args:
        predicted, target: (N,) int64, in 0..K-1.
    """
    return (target * classes + predicted).bincount(minlength=classes**2).view(classes, classes)


def fit_temperature(logits: Tensor, target: Tensor) -> Tensor:
    """The T that minimises the NLL of softmax(z / T) by L-BFGS (temperature scaling: Guo et al. 2017, 1706.04599).

    T lies within [0.01, 100] (ours): where all predictions are right, or nothing is learned, the NLL has no minimum,
    and T stops at or short of that bound. NaN where the NLL at T = 1 is not finite.

    Args:
        logits: (N, K), of images that neither training nor the test has.
        target: (N,) int64.

    Returns:
        () float64.
    """
    logits, target = _float64(logits, target)
    log_p = logits.log_softmax(1)
    if not F.nll_loss(log_p, target).isfinite() or log_p.isnan().any():
        return torch.full((), torch.nan, dtype=torch.float64, device=logits.device)
    log_p = log_p.clamp(min=-1e6)  # the gradient of -inf would be NaN
    free = torch.zeros((), dtype=torch.float64, device=logits.device, requires_grad=True)

    def temperature() -> Tensor:
        return (math.log(TEMPERATURES) * free.tanh()).exp()

    optimizer = torch.optim.LBFGS(
        [free], max_iter=100, tolerance_grad=1e-10, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(log_p / temperature(), target)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return temperature().detach()


def _ranks(log_p: Tensor, target: Tensor) -> Tensor:
    """(N,) int64: how many classes come before the target; of equal ones the first does, as argmax has it."""
    own = log_p.gather(1, target[:, None])
    first = torch.arange(log_p.shape[1], device=log_p.device) < target[:, None]
    return ((log_p > own) | ((log_p == own) & first)).sum(1)


def _float64(*tensors: Tensor) -> list[Tensor]:
    """Floating-point tensors in float64, class indices as they are; all on the CPU where the device has no float64."""
    on_cpu = (t.cpu() if t.device.type == "mps" else t for t in tensors)
    return [t.double() if t.is_floating_point() else t for t in on_cpu]


def _equal_width(values: Tensor, bins: int) -> Tensor:
    """The bin (lo, hi] of each value in [0, 1], from 0."""
    return (values * bins).ceil().long().clamp(1, bins) - 1


def _bin_sums(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Number of samples, sum of confidence and number of right ones in each equal-width bin."""
    columns = torch.stack([torch.ones_like(confidence), confidence, correct], 1)
    size, conf, acc = _sums(_equal_width(confidence, bins), bins, columns).unbind(1)
    return size, conf, acc


def _sums(which: Tensor, bins: int, values: Tensor) -> Tensor:
    """(bins, ...) float64: the sum of the `values` (N, ...) in each bin."""
    out = torch.zeros((bins, *values.shape[1:]), dtype=torch.float64, device=values.device)
    return out.index_add_(0, which, values.double())
