"""The algorithms, one per file; importing this package registers them."""

from kdrun.methods import (
    contrastive,
    dho,
    distill,
    fixmatch,
    kd_fixmatch,
    mixup_distill,
    peer_distill,
    peer_fixmatch,
    sho,
    supervised,
    tip_adapter,
    uncertainty_distill,
    zero_shot,
)

__all__ = [
    "contrastive", "dho", "distill", "fixmatch", "kd_fixmatch", "mixup_distill", "peer_distill", "peer_fixmatch", "sho",
    "supervised", "tip_adapter", "uncertainty_distill", "zero_shot",
]  # fmt: skip
