"""FlexMatch (Zhang et al. 2021, arXiv 2110.08263): FixMatch whose threshold is lower for classes that are learned less.

A class is learned as far as images of the pool are predicted as it with confidence: n_c of them, by the last prediction
of each that passed `threshold`. beta_c = n_c / max(max n, images without such a prediction), and the threshold of class
c is threshold * beta_c / (2 - beta_c), with the beta of the step before.
"""

from typing import Any

import torch
from torch import Tensor

from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.methods.fixmatch import FixMatch, FixMatchConfig
from kdrun.methods.labeler import Labeler, Seen
from kdrun.methods.step import Setup


class FlexMatchConfig(FixMatchConfig):
    warmup: bool = True
    """Whether images without a confident prediction count as a class of their own in the largest, so that no threshold
    is high while they are many."""


class Curriculum(Labeler):
    gathers = True
    selected: Tensor
    """(N,) int64: the last confident label of each image of the train array, -1 without one."""
    count: Tensor
    """(C,) int64: how often each class stands in `selected`."""

    def __init__(self, spec: Any, setup: Setup) -> None:
        super().__init__(spec, setup)
        # not the length of `selected`: images for validation are never seen, and others may be in no pool
        self.pool = setup.num_unlabeled
        self.register_buffer("selected", torch.full((len(setup.train_target),), -1))
        self.register_buffer("count", torch.zeros(setup.num_classes, dtype=torch.int64))

    @property
    def thresholds(self) -> Tensor:
        """(C,)."""
        largest = self.count.max()
        if self.spec.warmup:
            largest = torch.maximum(largest, self.pool - self.count.sum())
        beta = self.count / largest.clamp(min=1)
        thresholds: Tensor = self.spec.threshold * beta / (2 - beta)
        return thresholds

    @torch.no_grad()
    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        confidence, label = seen.p.max(1)
        weight = (confidence >= self.thresholds[label]).float()
        self._select(*(world().gathered(x) for x in (seen.index, label, confidence >= self.spec.threshold)))
        return label, weight

    def _select(self, index: Tensor, label: Tensor, sure: Tensor) -> None:
        """An image that a batch has several times gets the last of its labels, on every device."""
        order = torch.arange(len(index), device=index.device)
        later = (index == index[:, None]) & (order > order[:, None]) & sure
        new = (sure & ~later.any(1)).long()
        old = self.selected[index]
        self.count.index_add_(0, old.clamp(min=0), -new * (old >= 0))
        self.count.index_add_(0, label, new)
        self.selected.index_add_(0, index, new * (label - old))

    def metrics(self) -> dict[str, Tensor]:
        thresholds = self.thresholds
        return {"threshold/mean": thresholds.mean(), "threshold/lowest": thresholds.min()}


@register("method", "flexmatch")
class FlexMatch(FixMatch[FlexMatchConfig]):
    """FixMatch whose threshold is lower for classes that are learned less."""

    Config = FlexMatchConfig
    equation = (
        "H(y, p(weak)) + unlabeled_weight 1[max q >= threshold beta_c / (2 - beta_c)] H(c, p(strong)), c = argmax q, "
        "beta_c = n_c / max(max n, images without a label)"
    )
    source = "Zhang et al. 2021, arXiv 2110.08263"
    labels_by = Curriculum
