"""ReMixMatch (Berthelot et al. 2020, arXiv 1911.09785): MixMatch with aligned labels for strong views, and rotations.

The prediction on the weak view, aligned with how often the classes are among the labels and sharpened, is the label of
the weak view and of all strong ones; labeled images and these views are mixed as one list. Beside the terms of
`kdrun.methods.mixmatch`, of which that of unlabeled images is cross entropy here: cross entropy of the first strong
view before it is mixed, and of how it was turned (0, 90, 180 or 270 degrees, told by a linear head of its own). With
views=ctaugment strong views are the paper's, else RandAugment's.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.data.views.view import Samples, View
from kdrun.losses.labels import cross_entropy, full
from kdrun.methods.alignment import MovingMean, aligned
from kdrun.methods.labeler import sharpened
from kdrun.methods.mixmatch import MixMatch, MixMatchConfig
from kdrun.methods.new_head import PRELOGITS, new_head, with_prelogits
from kdrun.methods.semi_supervised import is_strong
from kdrun.methods.step import Context, Setup

TURNS = 4


class ReMixMatchConfig(MixMatchConfig):
    unlabeled_weight: float = Field(1.5, ge=0)
    """Of mixed unlabeled images, once `warmup` is over."""
    strong_views: int = Field(8, gt=0)
    """K: strong views of each unlabeled image."""
    premix_weight: float = Field(0.5, ge=0)
    """Of the first strong view before it is mixed, once `warmup` is over."""
    rotation_weight: float = Field(0.5, ge=0)
    """Of how the first strong view was turned."""
    alignment: Literal["window", "ema"] = "window"
    """The mean that predictions are aligned by: of the 128 last batches, at first uniform, without this one (the
    authors); ema: a moving one of decay .999 that starts with the first batch, and has this one in it (USB)."""


@register("method", "remixmatch")
class ReMixMatch(MixMatch[ReMixMatchConfig]):
    """MixMatch with aligned labels for strong views, and rotations."""

    Config = ReMixMatchConfig
    equation = (
        "H(y~, p(x~)) + r unlabeled_weight H(q~, p(u~)) + r premix_weight H(q, p(u_1)) + rotation_weight H(turn, "
        "p(turned u_1)), r = min(1, progress / warmup), u_1 the first of strong_views, q = p(weak), aligned, "
        "sharpened"
    )
    source = "Berthelot et al. 2020, arXiv 1911.09785"
    views: ClassVar = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    wanted: Tensor
    """(C,), how often each class is among the labels."""

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        needs = super().needs(config)
        more = tuple(f"strong_{k + 1}" for k in range(1, cls.spec_of(config).strong_views))
        streams = {**needs.streams, "unlabeled": (*needs.streams["unlabeled"], *more)}
        return replace(needs, streams=streams)

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        spec, classes, network = self.spec, setup.num_classes, self.networks()["student"]
        self.rotation: nn.Module | None = None
        if spec.rotation_weight:
            self.rotation = new_head(config, network, "rotation", lambda dim: nn.Linear(dim, TURNS))
        ema = spec.alignment == "ema"
        self.mean = MovingMean(classes, spec.alignment, start="first" if ema else "uniform")
        labels = setup.train_target[setup.train_target >= 0]
        wanted = torch.bincount(labels, minlength=classes).float().to(torch.get_default_device())
        self.register_buffer("wanted", wanted / wanted.sum(), persistent=False)

    def features(self, k: int = 0) -> tuple[str, ...]:
        return super().features(k) if self.rotation is None else with_prelogits(super().features(k))

    def parts(self, student: str) -> list[nn.Module]:
        return [*super().parts(student), *([] if self.rotation is None else [self.rotation])]

    def guessed(self, unlabeled: Samples) -> Tensor:
        p = self.aside(unlabeled.views["weak"], gradient=False).logits.softmax(1)
        before = self.mean.value
        after = self.mean(p)
        return sharpened(
            aligned(p, after if self.spec.alignment == "ema" else before, self.wanted), self.spec.temperature
        )

    def listed(self, unlabeled: Samples) -> list[View]:
        strong = [view for name, view in unlabeled.views.items() if is_strong(name)]
        return [*strong, unlabeled.views["weak"]]

    def of_unlabeled(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target)

    def beside(self, unlabeled: Samples, guess: Tensor, ctx: Context) -> dict[str, Tensor]:
        losses, view = dict[str, Tensor](), unlabeled.views["strong"]
        if self.spec.premix_weight:
            own = cross_entropy(self.aside(view).logits, guess).mean()
            losses["premix"] = self.rising("premix_weight", ctx) * own
        if self.rotation is not None:
            turned, turn = quarter_turns(view.pixels)
            features = self.aside(View(turned, view.index)).features[PRELOGITS]
            told = F.cross_entropy(full(self.rotation(features)), turn)
            losses["rotation"] = self.weight("rotation_weight", ctx) * told
        return losses


def quarter_turns(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Each image of the batch turned, a quarter of them by each angle; (B,) int64: by how many times 90 degrees."""
    if pixels.shape[2] != pixels.shape[3]:
        size = f"{pixels.shape[2]}x{pixels.shape[3]}"
        raise ConfigError(f"method=remixmatch turns images, which are {size} and not square; set rotation_weight to 0")
    batch, here = torch.arange(len(pixels), device=pixels.device), world()
    turn = (batch + here.rank * len(pixels)) % TURNS  # by its place in the batch of all ranks
    turned = torch.stack([pixels.rot90(k, (2, 3)) for k in range(TURNS)])
    return turned[turn, batch], turn
