"""Dash (Xu et al. 2021, arXiv 2109.00650): FixMatch whose threshold, one on the loss, falls as training goes on.

An unlabeled image counts if its loss against its own label, -log max q, is below rho = max(rho_min, scale gamma^-j
rho_0), where j counts pieces of the run and rho_0 is the loss at the end of a warm-up in which all count. Labels are
soft until rho has come down to rho_min, then hard.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.losses.labels import cross_entropy
from kdrun.methods.fixmatch import FixMatch, LabelsConfig
from kdrun.methods.labeler import Labeler, Seen, one_hot, over_kept, sharpened
from kdrun.methods.step import Setup, chosen

ALL = 500.0
"""rho of the warm-up: all images have a smaller loss (the authors')."""


class DashConfig(LabelsConfig):
    unlabeled_weight: float = Field(0.9, ge=0)
    """lambda_u; 0.9 is that of the authors' code."""
    rho_min: float = Field(0.05, gt=0)
    """The lowest threshold on the loss; 0.05 is a confidence of 0.951."""
    scale: float = Field(1.0001, gt=0)
    """C, on rho_0."""
    gamma: float = Field(1.27, gt=1)
    """What rho is divided by from one piece of the run to the next."""
    epochs: int = Field(1024, gt=0)
    """Into so many equal `epochs` the run is divided; the authors' are of 1,024 steps."""
    warmup_epochs: int = Field(10, gt=0)
    """In these all unlabeled images count."""
    decay_epochs: int = Field(9, gt=0)
    """Of a piece in which rho stays."""
    rho_from: Literal["labeled", "unlabeled"] = "labeled"
    """Whose mean loss in the last epoch of the warm-up is rho_0: that of labeled images (the paper), or that of strong
    views against soft labels (the authors' code)."""
    temperature: float = Field(0.5, gt=0)
    """T of soft labels."""
    divide_by: Literal["kept", "all"] = "kept"
    """The images that a mean over the batch divides by: those that count (the authors), or all (USB)."""


class Falling(Labeler):
    gathers = True
    total: Tensor
    """() sum of the mean losses that rho_0 is the mean of."""
    count: Tensor
    """() int64, how many there are."""
    rho: Tensor
    """() as it was in the last step."""

    def __init__(self, spec: Any, setup: Setup) -> None:
        super().__init__(spec, setup)
        self.unseen = math.log(setup.num_classes)  # rho_0 where the warm-up has no step: that of who knows nothing
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rho", torch.full((), ALL))

    @torch.no_grad()
    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        spec, (confidence, label) = self.spec, seen.p.max(1)
        soft, epoch = sharpened(seen.p, spec.temperature), seen.progress * spec.epochs
        warm = epoch < spec.warmup_epochs
        last = warm & (epoch >= spec.warmup_epochs - 1)
        self.total += last * self._loss(seen, soft)
        self.count += last
        rho_0 = torch.where(self.count > 0, self.total / self.count.clamp(min=1), self.unseen)
        pieces = (epoch - 1) // spec.decay_epochs
        falling = rho_0 * (spec.scale * spec.gamma**-pieces)
        self.rho.copy_(chosen(warm, lambda: torch.full_like(rho_0, ALL), lambda: falling.clamp(min=spec.rho_min)))
        target = torch.where(self.rho > spec.rho_min, soft, one_hot(label, soft.shape[1]))
        return target, (confidence > (-self.rho).exp()).float()

    def _loss(self, seen: Seen, soft: Tensor) -> Tensor:
        """Over all ranks, ()."""
        if self.spec.rho_from == "labeled":
            return world().mean(cross_entropy(seen.known, seen.target).mean())
        if seen.strong is None:
            raise TypeError("rho_from: unlabeled: without logits of strong views")
        return world().mean(cross_entropy(seen.strong, soft).mean())

    def counted(self, weight: Tensor) -> Tensor:
        return over_kept(weight) if self.spec.divide_by == "kept" else weight

    def metrics(self) -> dict[str, Tensor]:
        return {"rho": self.rho.clone()}


@register("method", "dash")
class Dash(FixMatch[DashConfig]):
    """FixMatch whose threshold, one on the loss, falls as training goes on."""

    # deviates: the paper has rho_0 of all labeled images after the warm-up, we of the batches of its last epoch
    Config = DashConfig
    equation = (
        "H(y, p(weak)) + unlabeled_weight 1[-log max q < max(rho_min, scale gamma^-j rho_0)] H(q sharpened, or argmax "
        "q at rho_min, p(strong)), a mean over what counts"
    )
    source = "Xu et al. 2021, arXiv 2109.00650"
    labels_by = Falling
