"""The algorithms, one per file; importing this package registers them."""

from kdrun.methods import distill, supervised

__all__ = ["distill", "supervised"]
