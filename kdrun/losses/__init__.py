"""Loss functions (pure, per sample unless they say otherwise) and the terms that put them to work."""

from kdrun.losses.correlation import DIST, dist
from kdrun.losses.decoupled import DKD, NKD, dkd, nkd
from kdrun.losses.labels import CrossEntropy, cross_entropy
from kdrun.losses.logits import (
    KD,
    TTM,
    WTTM,
    LogitConfig,
    LogitTerm,
    kd,
    power_sum,
    renyi_entropy,
    standardize,
    ttm,
    wttm,
)  # fmt: skip
from kdrun.losses.robust import (
    generalized_cross_entropy,
    mean_absolute_error,
    normalized_cross_entropy,
    reverse_cross_entropy,
    symmetric_cross_entropy,
)  # fmt: skip
from kdrun.losses.term import LossSet, Pair, Term, TermSpec

__all__ = [
    "DIST", "DKD", "KD", "NKD", "TTM", "WTTM", "CrossEntropy", "LogitConfig", "LogitTerm", "LossSet", "Pair", "Term",
    "TermSpec", "cross_entropy", "dist", "dkd", "generalized_cross_entropy", "kd", "mean_absolute_error", "nkd",
    "normalized_cross_entropy", "power_sum", "renyi_entropy", "reverse_cross_entropy", "standardize",
    "symmetric_cross_entropy", "ttm", "wttm",
]  # fmt: skip
