"""The algorithms, one per file; importing this package registers them."""

from kdrun.methods import (
    contrastive,
    distill,
    fixmatch,
    kd_fixmatch,
    mixup_distill,
    peer_distill,
    supervised,
    uncertainty_distill,
)

__all__ = [
    "contrastive",
    "distill",
    "fixmatch",
    "kd_fixmatch",
    "mixup_distill",
    "peer_distill",
    "supervised",
    "uncertainty_distill",
]
