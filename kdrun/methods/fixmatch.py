"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): confident predictions on weak views are labels for strong views.

L = mean_labeled H(y, p(weak)) + unlabeled_weight * mean_unlabeled 1[max q >= threshold] l(argmax q, p(strong)), where
q = p(weak) without gradient and the second mean divides by all unlabeled images of the batch, masked or not. l is what
the `loss` group holds against labels (cross entropy in the paper); the labeled term always is cross entropy.
"""

from dataclasses import replace
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch, Samples
from kdrun.losses.term import Pair, factor
from kdrun.methods.labeler import Labeler, Seen
from kdrun.methods.semi_supervised import SemiSupervised, SemiSupervisedConfig, label_of
from kdrun.methods.step import Context, Guesses, Setup, Step
from kdrun.models.output import Output

BINS = 10


class LabelsConfig(SemiSupervisedConfig):
    """Of FixMatch and its like."""

    joint_forward: bool = True
    """Labeled images, weak and strong views in one pass, as the authors do: batch normalisation sees them together, and
    the weak views cost a backward pass. false: a pass for each, that of the unlabeled weak views without gradient."""


class FixMatchConfig(LabelsConfig):
    threshold: float = Field(0.95, ge=0, le=1)
    """tau: the confidence from which on a prediction becomes a label."""


F = TypeVar("F", bound=LabelsConfig)


@register("method", "fixmatch")
class FixMatch(SemiSupervised[F]):
    """Confident predictions on weak views are labels for strong views."""

    Config: ClassVar[type[LabelsConfig]] = FixMatchConfig
    equation = "H(y, p(weak)) + unlabeled_weight 1[max q >= threshold] H(argmax q, p(strong)), q = p(weak)"
    source = "Sohn et al. 2020, arXiv 2001.07685"
    labels_by: ClassVar[type[Labeler]] = Labeler
    """How predictions become labels."""

    @classmethod
    def labels_with(cls, spec: F) -> tuple[type[Labeler], LabelsConfig]:
        """How predictions become labels, and the configuration of that."""
        return cls.labels_by, spec

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        gathers = cls.labels_with(cls.spec_of(config))[0].gathers
        return replace(super().needs(config), over_ranks="gathered" if gathers else "mean")

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        kind, spec = self.labels_with(self.spec)
        self.labeler = None if setup.restoring else kind(spec, setup)  # what is predicted knows nothing of it

    def step(self, batch: Batch, ctx: Context) -> Step:
        known, weak, strong, *_ = self.outputs(batch)
        return self.learned(batch, known, weak, strong, ctx)

    def learned(self, batch: Batch, known: Output, weak: Output, strong: Output, ctx: Context) -> Step:
        """The losses, from what the student gave for labeled images, weak and strong views of unlabeled ones."""
        unlabeled, labeler, p = batch["unlabeled"], self.own_labeler, weak.logits.detach().softmax(1)
        seen = Seen(
            p, unlabeled.views["weak"].index, known.logits.detach(), label_of(batch["labeled"]), ctx.progress,
            strong.logits.detach(),
        )  # fmt: skip
        target, weight = self.targets(unlabeled, seen, ctx)
        pair = Pair(strong, None, target, seen.index, ctx.progress, ctx.draw)
        losses = {"labeled": self.labeled(known, batch["labeled"], labeler.of_labeled(seen))}
        losses |= self.unlabeled(pair, labeler.counted(weight), ctx)
        for name, value in labeler.penalty(strong.logits, weight).items():
            key = f"{name}_weight"
            losses[name] = factor(getattr(labeler.spec, key) * ctx.factors.get(f"method.{key}", 1.0)) * value
        losses |= self.taught(batch, known, strong, ctx)
        metrics = {**histogram(p.amax(1)), **labeler.metrics()}
        label = target if target.ndim == 1 else target.argmax(1)
        return Step(losses, metrics, Guesses(seen.index, label, weight > 0))

    def outputs(self, batch: Batch, k: int = 0) -> list[Output]:
        """The k-th student on each of `views`, in their order."""
        named = [(stream, name) for stream, names in self.views_of(self.config).items() for name in names]
        views = [batch[stream].views[name] for stream, name in named]
        if self.spec.joint_forward:
            return self.joint(views, k)
        student, features = list(self.students.values())[k], self.features(k)
        out: list[Output] = []
        for (stream, name), view in zip(named, views, strict=True):
            with torch.set_grad_enabled((stream, name) != ("unlabeled", "weak")):
                out.append(student(view, features))
        return out

    def unlabeled(self, pair: Pair, weight: Tensor, ctx: Context, k: int = 0) -> dict[str, Tensor]:
        """The k-th student's terms against labels that were given to strong views.

        Args:
            weight: (B,), of each label. Every mean divides by all B images.
        """
        weight = self.weight("unlabeled_weight", ctx) * weight
        return {f"unlabeled_{name}": value for name, value in self.losses(k).target(pair, weight).items()}

    def targets(self, unlabeled: Samples, seen: Seen, ctx: Context) -> tuple[Tensor, Tensor]:
        """Label of each unlabeled image, (B,) int64 or (B, C) probabilities, and its weight (B,) in [0, 1]."""
        label, weight = self.own_labeler(seen)
        return label, weight

    @property
    def own_labeler(self) -> Labeler:
        if self.labeler is None:
            raise TypeError("a finished run labels nothing")
        return self.labeler


def histogram(confidence: Tensor) -> dict[str, Tensor]:
    """Share of the unlabeled images in each tenth of confidence on the weak view."""
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    shares = (bins[:, None] == torch.arange(BINS, device=bins.device)).float().mean(0)
    return {f"confidence/{k / BINS:.1f}": shares[k] for k in range(BINS)}
