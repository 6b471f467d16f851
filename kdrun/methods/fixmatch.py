"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): confident predictions on weak views are labels for strong views.

L = mean_labeled H(y, p(weak)) + unlabeled_weight * mean_unlabeled 1[max q >= threshold] l(argmax q, p(strong)), where
q = p(weak) without gradient and the second mean divides by all unlabeled images of the batch, masked or not. l is what
the `loss` group holds against labels (cross entropy in the paper); the labeled term always is cross entropy.
"""

from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch, Samples, together
from kdrun.losses.labels import cross_entropy
from kdrun.losses.term import Pair
from kdrun.methods.augment import Augment
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Guesses, Setup, Step
from kdrun.models.output import Output

BINS = 10


class FixMatchConfig(MethodConfig):
    threshold: float = Field(0.95, ge=0, le=1)
    """tau: the confidence from which on a prediction becomes a label."""
    unlabeled_ratio: int = Field(7, gt=0)
    """mu: unlabeled images for each labeled one in a batch."""
    unlabeled_weight: float = Field(1.0, ge=0)
    """lambda_u."""
    joint_forward: bool = True
    """Labeled images, weak and strong views in one pass, as the authors do: batch normalisation sees them together, and
    the weak views cost a backward pass. false: three passes, that of the weak views without gradient."""


F = TypeVar("F", bound=FixMatchConfig)


@register("method", "fixmatch")
class FixMatch(Method[F]):
    Config = FixMatchConfig

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        labeled = ("weak", "probe") if config.views.strong.learns else ("weak",)
        return Needs(streams={"labeled": labeled, "unlabeled": ("weak", "strong")}, over_ranks="mean")

    @classmethod
    def batch_sizes(cls, config: RunConfig) -> dict[str, int]:
        size = config.schedule.batch_size
        return {"labeled": size, "unlabeled": size * cls.spec_of(config).unlabeled_ratio}

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        strong = config.views.strong
        self.augment = Augment(strong.rate_threshold, strong.rate_decay) if strong.learns else None

    def forward(self, batch: Batch, ctx: Context) -> Step:
        return super().forward(batch if self.augment is None else self.augment.augmented(batch), ctx)

    @property
    def probes(self) -> bool:
        return self.augment is not None

    def probe(self, batch: Batch) -> None:
        if self.augment is not None:
            self.augment.learn(batch["labeled"], self.students.values())

    def step(self, batch: Batch, ctx: Context) -> Step:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        known, weak, strong = self.outputs(batch)
        confidence, label = weak.logits.detach().softmax(1).max(1)
        target, used = self.targets(unlabeled, confidence, label, ctx)
        index = unlabeled.views["strong"].index
        pair = Pair(strong, None, target, index, ctx.progress, ctx.draw)
        supervised = cross_entropy(known.logits, labeled.target).mean()  # type: ignore[arg-type]
        return Step(
            {"labeled": supervised, **self.unlabeled(pair, used, ctx)},
            histogram(confidence),
            Guesses(index, target, used),
        )

    def outputs(self, batch: Batch, k: int = 0) -> list[Output]:
        """The k-th student on the labeled images and on the weak and the strong views of the unlabeled ones."""
        labeled, unlabeled = batch["labeled"].views, batch["unlabeled"].views
        views = [labeled["weak"], unlabeled["weak"], unlabeled["strong"]]
        student, features = list(self.students.values())[k], self.losses(k).needed.features
        if self.spec.joint_forward:
            out: Output = student(together(views), features)
            return out.split([len(v.index) for v in views])
        known, weak, strong = views
        of_known = student(known, features)
        with torch.no_grad():
            of_weak = student(weak, features)
        return [of_known, of_weak, student(strong, features)]

    def unlabeled(self, pair: Pair, used: Tensor, ctx: Context, k: int = 0) -> dict[str, Tensor]:
        """The k-th student's terms against labels that were given to strong views.

        Args:
            used: (B,) bool. Every mean divides by all B images.
        """
        weight = self.weight("unlabeled_weight", ctx) * used.float()
        return {f"unlabeled_{name}": value for name, value in self.losses(k).target(pair, weight).items()}

    def targets(self, unlabeled: Samples, confidence: Tensor, label: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Target (B,) int64 of each unlabeled image, and whether it is used, (B,) bool."""
        return label, confidence >= self.spec.threshold


def histogram(confidence: Tensor) -> dict[str, Tensor]:
    """Share of the unlabeled images in each tenth of confidence on the weak view."""
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    shares = (bins[:, None] == torch.arange(BINS, device=bins.device)).float().mean(0)
    return {f"confidence/{k / BINS:.1f}": shares[k] for k in range(BINS)}
