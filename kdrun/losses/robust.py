"""Losses that noisy labels pull less: symmetric cross entropy, MAE, normalized and generalized cross entropy.

Per sample, in float32 whatever comes in (float64 stays). The target t is a class index (B,) or probabilities (B, C);
p = softmax(student_logits). A loss L is symmetric where the sum over all classes j of L(p, j) is a constant: then label
noise that is uniform over the classes does not move its minimum (Ghosh et al. 2017, arXiv 1712.09482).
"""

import math
from typing import Any

from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.registry import register
from kdrun.losses.labels import cross_entropy, full, labels_of
from kdrun.losses.term import Pair, Term

LOG_ZERO = math.log(1e-4)


def reverse_cross_entropy(student_logits: Tensor, target: Tensor, log_zero: float = LOG_ZERO) -> Tensor:
    """H(p, t) = -sum_k p_k log t_k with log 0 := `log_zero` (Wang et al. 2019, arXiv 1908.06112, eq. of RCE).

    For a class index y this is -log_zero * (1 - p_y).

    Args:
        student_logits: (B, C).
        target: (B,) int64, or (B, C) probabilities.
        log_zero: A < 0.

    Returns:
        (B,).
    """
    if not log_zero < 0:
        raise ValueError(f"log_zero must be below 0, got {log_zero}")
    p = _probabilities(student_logits)
    if target.ndim == 1:
        return -log_zero * (1 - _at(p, target))
    return -(p * target.log().clamp(min=log_zero)).sum(1)


def symmetric_cross_entropy(
    student_logits: Tensor, target: Tensor, alpha: float, beta: float, log_zero: float = LOG_ZERO
) -> Tensor:
    """alpha * H(t, p) + beta * H(p, t) (Wang et al. 2019, arXiv 1908.06112). Shapes as in `reverse_cross_entropy`."""
    return alpha * cross_entropy(student_logits, target) + beta * reverse_cross_entropy(
        student_logits, target, log_zero
    )


def mean_absolute_error(student_logits: Tensor, target: Tensor) -> Tensor:
    """sum_k |p_k - t_k|, for a class index y 2 (1 - p_y): symmetric (Ghosh et al. 2017, arXiv 1712.09482).

    Shapes as in `reverse_cross_entropy`.
    """
    p = _probabilities(student_logits)
    return 2 * (1 - _at(p, target)) if target.ndim == 1 else (p - target).abs().sum(1)


def normalized_cross_entropy(student_logits: Tensor, target: Tensor) -> Tensor:
    """H(t, p) / sum_j H(j, p): symmetric (Ma et al. 2020, arXiv 2006.13554). Shapes as in `reverse_cross_entropy`."""
    logs = full(student_logits).log_softmax(1)
    return cross_entropy(student_logits, target) / -logs.sum(1)


def generalized_cross_entropy(student_logits: Tensor, target: Tensor, q: float) -> Tensor:
    """sum_k t_k (1 - p_k^q) / q: cross entropy for q -> 0, half of MAE for q = 1 (Zhang and Sabuncu 2018, 1805.07836).

    Shapes as in `reverse_cross_entropy`; 0 < q <= 1.
    """
    if not 0 < q <= 1:
        raise ValueError(f"q must lie in (0, 1], got {q}")
    powers = (q * full(student_logits).log_softmax(1)).exp()  # p ** q has no finite gradient at p = 0
    powers = _at(powers, target) if target.ndim == 1 else (target * powers).sum(1)
    return (1 - powers) / q


class _Robust(Term):
    """A term whose value is a function of logits and target."""

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(over_ranks="mean")

    def forward(self, pair: Pair) -> Tensor:
        return self.value(pair.student.logits, labels_of(pair, self))

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


@register("loss", "sce")
class SymmetricCrossEntropy(_Robust):
    """Cross entropy and its reverse, which noise in labels moves less."""

    equation = "alpha H(y, p_s) + beta H(p_s, y), log 0 := log_zero"
    source = "Wang et al. 2019, arXiv 1908.06112"

    class Config(TermConfig):
        alpha: float = Field(1.0, ge=0)
        beta: float = Field(0.1, ge=0)
        log_zero: float = Field(LOG_ZERO, lt=0)
        """A, the value of log 0 in RCE; only beta * |A| counts."""

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        return symmetric_cross_entropy(logits, target, self.config.alpha, self.config.beta, self.config.log_zero)


@register("loss", "mae")
class MeanAbsoluteError(_Robust):
    """A distance of probabilities from the label that is bounded: noise in labels moves it less."""

    equation = "sum_k |p_s,k - y_k|"
    source = "Ghosh et al. 2017, arXiv 1712.09482"

    class Config(TermConfig):
        pass

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        return mean_absolute_error(logits, target)


@register("loss", "nce")
class NormalizedCrossEntropy(_Robust):
    """Cross entropy with the label over that with all classes: bounded, so noise in labels moves it less."""

    equation = "H(y, p_s) / sum_j H(j, p_s)"
    source = "Ma et al. 2020, arXiv 2006.13554"

    class Config(TermConfig):
        pass

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        return normalized_cross_entropy(logits, target)


@register("loss", "gce")
class GeneralizedCrossEntropy(_Robust):
    """Between cross entropy (q to 0) and the distance of probabilities (q = 1)."""

    equation = "sum_k y_k (1 - p_s,k^q) / q"
    source = "Zhang and Sabuncu 2018, arXiv 1805.07836"

    class Config(TermConfig):
        q: float = Field(0.7, gt=0, le=1)

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        return generalized_cross_entropy(logits, target, self.config.q)


def _probabilities(logits: Tensor) -> Tensor:
    return full(logits).softmax(1)


def _at(values: Tensor, target: Tensor) -> Tensor:
    """(B, C) and (B,) -> (B,): the value at the target class."""
    return values.gather(1, target[:, None]).squeeze(1)
