"""SoftMatch (Chen et al. 2023, arXiv 2301.10921): FixMatch in which a label counts the less, the less sure it is.

Its weight is exp(-min(max UA(q) - mu, 0)^2 n_sigma^2 / (2 sigma^2)): a Gaussian below the mean confidence mu, 1 above.
mu and sigma^2 are moving moments of the confidence. UA aligns q to uniform predictions, for the weight alone: the label
is argmax q.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.methods.alignment import MovingMean, aligned
from kdrun.methods.fixmatch import FixMatch, LabelsConfig
from kdrun.methods.labeler import Labeler, Seen
from kdrun.methods.step import Setup

TINY = 1e-12


class SoftMatchConfig(LabelsConfig):
    n_sigma: float = Field(2.0, gt=0)
    """The Gaussian is sigma / n_sigma wide."""
    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the old moving means that stays in a step."""
    alignment: Literal["uniform", "labeled", "none"] = "uniform"
    """What predictions are aligned to: uniform ones (the paper's UA; USB), those on labeled images (the authors' code
    in TorchSSL), nothing."""
    moments_of: Literal["raw", "aligned"] = "raw"
    """Whose confidence has mean mu and variance sigma^2: that before (TorchSSL) or after alignment (USB)."""


class Gaussian(Labeler):
    gathers = True

    def __init__(self, spec: Any, setup: Setup) -> None:
        super().__init__(spec, setup)
        classes = setup.num_classes
        self.p = MovingMean(classes, decay=spec.decay)
        self.known = MovingMean(classes, decay=spec.decay)
        self.mean = MovingMean(1, decay=spec.decay, start=1 / classes)
        self.variance = MovingMean(1, decay=spec.decay, start=1.0)

    @torch.no_grad()
    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        confidence, label = seen.p.max(1)
        sure = self._aligned(seen).amax(1)
        taken = sure if self.spec.moments_of == "aligned" else confidence
        below = (sure - self.mean(taken[:, None])).clamp(max=0)
        variance = self.variance(world().gathered(taken).var()[None, None]) / self.spec.n_sigma**2
        return label, (-below.square() / (2 * variance).clamp(min=TINY)).exp()

    def _aligned(self, seen: Seen) -> Tensor:
        alignment = self.spec.alignment
        if alignment == "none":
            return seen.p
        mean = self.p(seen.p)
        target = torch.full_like(mean, 1 / len(mean)) if alignment == "uniform" else self.known(seen.known.softmax(1))
        return aligned(seen.p, mean, target)

    def metrics(self) -> dict[str, Tensor]:
        return {"confidence_mean": self.mean.value[0], "confidence_std": self.variance.value[0].sqrt()}


@register("method", "softmatch")
class SoftMatch(FixMatch[SoftMatchConfig]):
    """FixMatch in which a label counts the less, the less sure it is."""

    Config = SoftMatchConfig
    equation = (
        "H(y, p(weak)) + unlabeled_weight exp(-min(max UA(q) - mu, 0)^2 n_sigma^2 / (2 sigma^2)) H(argmax q, p(strong))"
    )
    source = "Chen et al. 2023, arXiv 2301.10921"
    labels_by = Gaussian

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors = super().contradictions(config)
        if cls.batch_sizes(config)["unlabeled"] < 2:
            errors.append("method.unlabeled_ratio: one unlabeled image a step has no variance; give at least 2")
        return errors
