"""The algorithms, one per file; importing this package registers them."""

from kdrun.methods import distill, fixmatch, kd_fixmatch, mixup_distill, supervised

__all__ = ["distill", "fixmatch", "kd_fixmatch", "mixup_distill", "supervised"]
