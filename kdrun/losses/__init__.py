"""Loss functions (pure, per sample unless they say otherwise) and the terms that put them to work."""

from kdrun.losses.correlation import DIST, dist
from kdrun.losses.crd import CRD, nce
from kdrun.losses.decoupled import DKD, NKD, dkd, nkd
from kdrun.losses.evidence import Evidential, evidential
from kdrun.losses.features import AT, PKT, RKD, VID, FitNet, at, fitnet, pkt, rkd_angle, rkd_distance, vid
from kdrun.losses.itrd import ITRD, correlation_loss, mutual_information_loss
from kdrun.losses.labels import CrossEntropy, cross_entropy
from kdrun.losses.linearity import Linearity, linearity
from kdrun.losses.logits import (
    KD,
    TTM,
    WTTM,
    LogitConfig,
    LogitTerm,
    kd,
    mean_of_probabilities,
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
from kdrun.losses.term import LossSet, Pair, Term, TermSpec, UnmixedOutputs

__all__ = [
    "AT", "CRD", "DIST", "DKD", "ITRD", "KD", "NKD", "PKT", "RKD", "TTM", "VID", "WTTM", "CrossEntropy", "Evidential",
    "FitNet", "Linearity", "LogitConfig", "LogitTerm", "LossSet", "Pair", "Term", "TermSpec", "UnmixedOutputs", "at",
    "correlation_loss", "cross_entropy", "dist", "dkd", "evidential", "fitnet", "generalized_cross_entropy", "kd",
    "linearity", "mean_absolute_error", "mean_of_probabilities", "mutual_information_loss", "nce", "nkd",
    "normalized_cross_entropy", "pkt", "power_sum", "renyi_entropy", "reverse_cross_entropy", "rkd_angle",
    "rkd_distance", "standardize", "symmetric_cross_entropy", "ttm", "vid", "wttm",
]  # fmt: skip
