"""Uncertainty-aware distillation with peers (Gore et al. 2025, arXiv 2511.18826), for two students or more.

Each student k has L_k = alpha CE + beta mean_x w(x) tau^2 KL(p_T || p_k) + gamma mean_x tau^2 KL(p_peer || p_k): the
terms of `loss` as in uncertainty_distill, and the term against its peers, through which no gradient flows to them. Of
more than two students the peers' mean probabilities are the target, or each of them is (the paper has two). Without a
teacher it is deep mutual learning (Zhang et al. 2018, arXiv 1706.00384).
"""

from dataclasses import replace
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch, View
from kdrun.losses.logits import kd, mean_of_probabilities
from kdrun.losses.term import Pair
from kdrun.methods.step import Context, Step
from kdrun.methods.uncertainty_distill import UncertaintyDistill, WeightedConfig


class PeerConfig(WeightedConfig):
    peer_weight: float = Field(0.2, ge=0)
    """gamma; 0: students that know nothing of each other."""
    peer_temperature: float = Field(4.0, gt=0)
    """tau."""
    peer_target: Literal["mean", "sum"] = "mean"
    """mean: the mean of the others' probabilities at tau. sum: one term against each of the others, added up."""


P = TypeVar("P", bound=PeerConfig)


@register("method", "peer_distill")
class PeerDistill(UncertaintyDistill[P]):
    """Students learn from a teacher, as far as it is sure, and from each other."""

    Config = PeerConfig
    equation = (
        "for each student k: as uncertainty_distill + peer_weight tau^2 KL(p_peer || p_k), tau = peer_temperature, "
        "p_peer the others' mean"
    )
    source = "Gore et al. 2025, arXiv 2511.18826; without a teacher: Zhang et al. 2018, arXiv 1706.00384"

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return replace(super().needs(config), students=(2, None))

    def step(self, batch: Batch, ctx: Context) -> Step:
        pairs, weight, metrics = self.pairs(batch, ctx)
        return Step(self.together(pairs, weight, ctx), metrics)

    def together(self, pairs: list[Pair], weight: Tensor | None, ctx: Context) -> dict[str, Tensor]:
        """Every student's terms: those of `loss`, and the one against its peers."""
        logits = [pair.student.logits for pair in pairs]
        losses: dict[str, Tensor] = {}
        for k, (name, pair) in enumerate(zip(self.students, pairs, strict=True)):
            own = self.supervised(k, pair, weight)
            if self.spec.peer_weight:
                own["peer"] = self.weight("peer_weight", ctx) * against_peers(logits, k, self.spec).mean()
            losses |= {f"{name}/{label}": value for label, value in own.items()}
        return losses

    def predict(self, view: View) -> dict[str, Tensor]:
        """Every student, and the mean of their probabilities as `ensemble`."""
        out = super().predict(view)
        return {**out, "ensemble": mean_of_probabilities(torch.stack(list(out.values())))}


def against_peers(logits: list[Tensor], k: int, config: PeerConfig) -> Tensor:
    """tau^2 KL(p_peer || p_k) of the k-th of several (B, C) logits, (B,); the gradient is the k-th's alone."""
    tau = config.peer_temperature
    peers = torch.stack([other.detach() for i, other in enumerate(logits) if i != k])
    if config.peer_target == "mean":
        return kd(logits[k], mean_of_probabilities(peers, tau), tau)
    return torch.stack([kd(logits[k], peer, tau) for peer in peers]).sum(0)
