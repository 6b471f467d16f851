"""The algorithms, one per file; importing this package registers them."""

from kdrun.methods import (
    distill,
    fixmatch,
    kd_fixmatch,
    mixup_distill,
    peer_distill,
    peer_fixmatch,
    supervised,
    uncertainty_distill,
)

__all__ = [
    "distill",
    "fixmatch",
    "kd_fixmatch",
    "mixup_distill",
    "peer_distill",
    "peer_fixmatch",
    "supervised",
    "uncertainty_distill",
]
