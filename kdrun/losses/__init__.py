"""Loss functions (pure, per sample) and the terms that put them to work."""

from kdrun.losses.crd import CRD, nce
from kdrun.losses.features import AT, PKT, RKD, VID, FitNet, at, fitnet, pkt, rkd_angle, rkd_distance, vid
from kdrun.losses.itrd import ITRD, correlation_loss, mutual_information_loss
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
    "AT", "CRD", "ITRD", "KD", "PKT", "RKD", "TTM", "VID", "WTTM", "CrossEntropy", "FitNet", "LossSet", "Pair", "Term",
    "TermSpec", "at", "correlation_loss", "cross_entropy", "fitnet", "generalized_cross_entropy", "kd",
    "mean_absolute_error", "mutual_information_loss", "nce", "normalized_cross_entropy", "pkt", "power_sum",
    "reverse_cross_entropy", "rkd_angle", "rkd_distance", "symmetric_cross_entropy", "ttm", "vid", "wttm",
]  # fmt: skip
