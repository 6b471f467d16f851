"""Loss functions (pure, per sample) and the terms that put them to work."""

from kdrun.losses.labels import CrossEntropy, cross_entropy
from kdrun.losses.logits import KD, TTM, WTTM, kd, power_sum, ttm, wttm
from kdrun.losses.term import LossSet, Pair, Term, TermSpec

__all__ = [
    "KD", "TTM", "WTTM", "CrossEntropy", "LossSet", "Pair", "Term", "TermSpec",
    "cross_entropy", "kd", "power_sum", "ttm", "wttm",
]  # fmt: skip
