"""FreeMatch (Wang et al. 2023, arXiv 2205.07246): FixMatch with thresholds that follow predictions, and fairness.

Moving means of weak predictions q: tau of max q, p~ of q, h~ of the one-hot argmax q, each with the batch at hand taken
in first. The threshold of class c is tau p~_c / max p~. The fairness term, sum_c SN(p~ / h~)_c log SN(p / h)_c, is of
the strong views that are learned from: p is their mean prediction, which has the gradient, h the histogram of their
argmax, and SN divides by the sum. It grows where predictions gather in the classes that p~ / h~ favours.
"""

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.methods.alignment import MovingMean
from kdrun.methods.fixmatch import FixMatch, LabelsConfig
from kdrun.methods.labeler import Labeler, Seen, one_hot
from kdrun.methods.step import Setup

TINY = 1e-12


class FreeMatchConfig(LabelsConfig):
    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the old moving means that stays in a step."""
    lowest_threshold: float = Field(0.0, ge=0, le=1)
    """Of every class; the authors' on SVHN: 0.9."""
    highest_threshold: float = Field(1.0, ge=0, le=1)
    """Of every class; the authors' on SVHN: 0.95."""
    fairness_weight: float = Field(0.01, ge=0)
    """w_f; 0.01 is that of the authors' code (TorchSSL), USB has 0.001."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.lowest_threshold > self.highest_threshold:
            raise ValueError(f"lowest_threshold: is above highest_threshold, which is {self.highest_threshold}")
        return self


class SelfAdaptive(Labeler):
    gathers = True

    def __init__(self, spec: Any, setup: Setup) -> None:
        super().__init__(spec, setup)
        classes = setup.num_classes
        self.confidence = MovingMean(1, decay=spec.decay, start=1 / classes)
        self.p = MovingMean(classes, decay=spec.decay)
        self.label = MovingMean(classes, decay=spec.decay)

    @property
    def thresholds(self) -> Tensor:
        """(C,)."""
        p, spec = self.p.value, self.spec
        return (self.confidence.value * p / p.max()).clamp(spec.lowest_threshold, spec.highest_threshold)

    @torch.no_grad()
    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        confidence, label = seen.p.max(1)
        self.confidence(confidence[:, None])
        self.p(seen.p)
        self.label(one_hot(label, seen.p.shape[1]))
        return label, (confidence >= self.thresholds[label]).float()

    def penalty(self, strong: Tensor, weight: Tensor) -> dict[str, Tensor]:
        strong, weight = world().gathered(strong), world().gathered(weight)
        return {"fairness": fairness(strong, weight, self.p.value, self.label.value)}

    def metrics(self) -> dict[str, Tensor]:
        thresholds = self.thresholds
        return {"threshold/mean": thresholds.mean(), "threshold/lowest": thresholds.min()}


def fairness(strong: Tensor, weight: Tensor, p: Tensor, label: Tensor) -> Tensor:
    """A negated cross entropy, (); 0 where no image counts.

    Args:
        strong: (B, C) logits.
        weight: (B,), of each image.
        p: (C,) mean prediction on weak views.
        label: (C,) shares of their labels.
    """
    found, total = strong.softmax(1), weight.sum()
    shares = (weight / total.clamp(min=TINY))[:, None]
    seen = _over((shares * found).sum(0), (shares * one_hot(found.argmax(1), len(p))).sum(0))
    value = (_over(p, label) * (seen + TINY).log()).sum()
    return torch.where(total > 0, value, 0.0)


def _over(p: Tensor, label: Tensor) -> Tensor:
    """(C,) p / label, 0 for a class that no label has, divided by their sum."""
    ratio = torch.where(label > 0, p / label.clamp(min=TINY), 0.0)
    return ratio / ratio.sum().clamp(min=TINY)


@register("method", "freematch")
class FreeMatch(FixMatch[FreeMatchConfig]):
    """FixMatch whose thresholds follow the predictions, and a fairness term."""

    Config = FreeMatchConfig
    equation = (
        "H(y, p(weak)) + unlabeled_weight 1[max q >= tau p~_c / max p~] H(c, p(strong)) + fairness_weight "
        "sum_c SN(p~ / h~)_c log SN(mean p(strong) / h)_c, c = argmax q"
    )
    source = "Wang et al. 2023, arXiv 2205.07246"
    labels_by = SelfAdaptive
