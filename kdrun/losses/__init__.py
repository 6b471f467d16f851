"""Loss functions (pure, per sample) and the terms that put them to work."""

from kdrun.losses.labels import CrossEntropy, cross_entropy
from kdrun.losses.logits import KD, TTM, WTTM, kd, power_sum, ttm, wttm
from kdrun.losses.robust import (
    generalized_cross_entropy,
    mean_absolute_error,
    normalized_cross_entropy,
    reverse_cross_entropy,
    symmetric_cross_entropy,
)  # fmt: skip
from kdrun.losses.term import LossSet, Pair, Term, TermSpec

__all__ = [
    "KD", "TTM", "WTTM", "CrossEntropy", "LossSet", "Pair", "Term", "TermSpec",
    "cross_entropy", "generalized_cross_entropy", "kd", "mean_absolute_error", "normalized_cross_entropy",
    "power_sum", "reverse_cross_entropy", "symmetric_cross_entropy", "ttm", "wttm",
]  # fmt: skip
