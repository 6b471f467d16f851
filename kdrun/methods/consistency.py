"""What methods of consistency share: how far a prediction is from a target, and a weight that rises to its value."""

from pydantic import Field
from torch import Tensor

from kdrun.losses.labels import full
from kdrun.methods.semi_supervised import SemiSupervisedConfig


class RampedConfig(SemiSupervisedConfig):
    unlabeled_ratio: int = Field(1, gt=0)
    """mu: unlabeled images for each labeled one in a batch."""
    warmup: float = Field(0.4, ge=0, le=1)
    """Share of the run in which unlabeled_weight rises from 0; 0: it holds from the start."""


def squared(logits: Tensor, target: Tensor) -> Tensor:
    """mean_c (p_c - t_c)^2 with p = softmax(logits) and a gradient to the logits only.

    Args:
        logits: (B, C).
        target: (B, C) probabilities.

    Returns:
        (B,).
    """
    return (full(logits).softmax(1) - target.detach()).square().mean(1)
