"""Evidential learning: a network whose outputs are evidence for classes, and so say how much it knows."""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.registry import register
from kdrun.losses.labels import full, labels_of
from kdrun.losses.term import Pair, Term, risen


def evidential(logits: Tensor, target: Tensor, kl_weight: float | Tensor = 1.0) -> Tensor:
    """Expected squared error under a Dirichlet distribution, and a penalty on misleading evidence.

    sum_j (y_j - p_j)^2 + p_j (1 - p_j) / (S + 1) + kl_weight KL(Dir(a~) || Dir(1)), a = softplus(z) + 1, S = sum_j a_j,
    p = a / S, a~ = y + (1 - y) a (Sensoy et al. 2018, arXiv 1806.01768, eq. 5 and the one after it).

    Args:
        logits: (B, C).
        target: (B,) int64 class indices, or (B, C) probabilities.

    Returns:
        (B,).
    """
    alpha = F.softplus(full(logits)) + 1
    # not by one_hot, which looks at the numbers
    y = target if target.ndim == 2 else target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    y = y.to(alpha.dtype)
    total = alpha.sum(1, keepdim=True)
    p = alpha / total
    error = ((y - p) ** 2 + p * (1 - p) / (total + 1)).sum(1)
    return error + kl_weight * _kl_to_uniform(y + (1 - y) * alpha)


def _kl_to_uniform(alpha: Tensor) -> Tensor:
    """KL(Dir(alpha) || Dir(1)). (B, C) -> (B,)."""
    total = alpha.sum(1, keepdim=True)
    norm = total.squeeze(1).lgamma() - alpha.lgamma().sum(1) - math.lgamma(alpha.shape[1])
    return norm + ((alpha - 1) * (alpha.digamma() - total.digamma())).sum(1)


@register("loss", "evidential")
class Evidential(Term):
    """Logits are evidence for a Dirichlet distribution over class probabilities: `evidential`."""

    equation = (
        "sum_j (y_j - p_j)^2 + p_j (1 - p_j) / (S + 1) + min(progress / annealing, 1) KL(Dir(a~) || Dir(1)), "
        "a = softplus(z) + 1, S = sum_j a_j, p = a / S, a~ = y + (1 - y) a"
    )
    source = "Sensoy et al. 2018, arXiv 1806.01768"

    class Config(TermConfig):
        annealing: float = Field(0.2, ge=0, lt=1)
        """Share of the run in which the penalty rises from 0."""

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(over_ranks="mean")

    def forward(self, pair: Pair) -> Tensor:
        # deviates: the paper raises the penalty over 10 epochs, we over a share of the run, because an epoch of 50
        # labels is no measure of time.
        return evidential(pair.student.logits, labels_of(pair, self), risen(pair.progress, self.config.annealing))
