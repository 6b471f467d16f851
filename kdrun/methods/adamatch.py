"""AdaMatch (Berthelot et al. 2022, arXiv 2106.04732), as its authors run it on unlabeled images of the same domain.

FixMatch, in which predictions are aligned with the classes that the network sees in labeled images, and a label needs a
share of the confidence that it has there: max a >= threshold * mean_labeled max p(x), a = p(u) * t / m renormalised, t
and m the moving means of p(x) and p(u), x and u weak views. The labeled term is the mean cross entropy of weak and
strong views, whose logits lie at random between those of a pass of labeled images alone and those of the pass of all
images. The unlabeled weight rises as half a cosine. `loss` holds the terms against labels of unlabeled images.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.data.views.view import Batch, together
from kdrun.losses.term import Pair, risen
from kdrun.methods.alignment import MovingMean, aligned
from kdrun.methods.fixmatch import FixMatch, FixMatchConfig
from kdrun.methods.labeler import Labeler, Seen
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.output import Output


class AdaMatchConfig(FixMatchConfig):
    unlabeled_ratio: int = Field(3, gt=0)
    """mu: unlabeled images for each labeled one in a batch."""
    threshold: float = Field(0.9, ge=0, le=1)
    """Share of the mean confidence on labeled images from which on a prediction becomes a label."""
    warmup: float = Field(0.5, ge=0, le=1)
    """Share of the run in which unlabeled_weight rises from 0; 0: it holds from the start."""
    interpolate: bool = True
    """Whether logits of labeled images lie between those of two passes."""
    labeled_strong: bool = True
    """Whether labeled images are learned from strong views, too."""
    alignment: Literal["window", "ema"] = "window"
    """m: the mean of the last 128 batches, uniform at first; ema: of decay 0.999 from the first one on."""


class Relative(Labeler):
    """Aligned predictions, by their confidence relative to that on labeled images."""

    gathers = True

    def __init__(self, spec: Any, setup: Setup) -> None:
        super().__init__(spec, setup)
        self.wanted = MovingMean(setup.num_classes)
        self.found = MovingMean(
            setup.num_classes, spec.alignment, start="uniform" if spec.alignment == "window" else "first"
        )

    @torch.no_grad()
    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        known = seen.known.softmax(1)
        least = self.spec.threshold * world().mean(known.amax(1).mean())
        wanted, found = self.wanted(known), self.found(seen.p)
        confidence, label = aligned(seen.p, found, wanted).max(1)
        return label, (confidence >= least).float()


@register("method", "adamatch")
class AdaMatch(FixMatch[AdaMatchConfig]):
    """Labels are aligned with those of labeled images, and as sure as these are on average."""

    Config = AdaMatchConfig
    equation = (
        "H(y, z') + w(t / warmup) unlabeled_weight 1[max a >= threshold mean max p(x)] H(argmax a, p(strong)), z' "
        "between the logits of two passes, a = p(u) t / m renormalised"
    )
    source = "Berthelot et al. 2022, arXiv 2106.04732"
    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak", "strong"), "unlabeled": ("weak", "strong")}
    labels_by = Relative

    @classmethod
    def views_of(cls, config: RunConfig) -> dict[str, tuple[str, ...]]:
        return cls.views if cls.spec_of(config).labeled_strong else {**cls.views, "labeled": ("weak",)}

    def step(self, batch: Batch, ctx: Context) -> Step:
        *known, weak, strong = self.outputs(batch)
        if self.spec.interpolate:
            known = self.interpolated(batch, known, ctx)
        out = self.learned(batch, known[0], weak, strong, ctx)
        labeled = torch.stack([self.labeled(one, batch["labeled"]) for one in known]).mean()
        return replace(out, losses={**out.losses, "labeled": labeled})

    def interpolated(self, batch: Batch, known: list[Output], ctx: Context) -> list[Output]:
        """What was given for the views of labeled images, each logit at random on the way to that of a pass without
        unlabeled ones."""
        views = [batch["labeled"].views[name] for name in self.views_of(self.config)["labeled"]]
        count, classes = known[0].logits.shape
        alone = self.aside(together(views)).split([count] * len(views))
        share = ctx.draw(count, len(views), classes).unbind(1)
        return [
            replace(one, logits=torch.lerp(one.logits, other.logits, part))
            for one, other, part in zip(known, alone, share, strict=True)
        ]

    def unlabeled(self, pair: Pair, weight: Tensor, ctx: Context, k: int = 0) -> dict[str, Tensor]:
        return super().unlabeled(pair, risen(ctx.progress, self.spec.warmup, "cosine") * weight, ctx, k)
