"""What CoMatch and SimMatch share: embeddings by a head of their own, soft labels that a memory of these smooths."""

from dataclasses import replace
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.data.views.view import Batch
from kdrun.losses.labels import full
from kdrun.losses.term import Pair
from kdrun.methods.alignment import MovingMean, aligned
from kdrun.methods.fixmatch import histogram
from kdrun.methods.new_head import PRELOGITS, new_head, with_prelogits
from kdrun.methods.semi_supervised import SemiSupervised, SemiSupervisedConfig
from kdrun.methods.step import Context, Guesses, Setup, Step
from kdrun.models.heads import hidden_head
from kdrun.models.output import Output


class EmbeddingConfig(SemiSupervisedConfig):
    threshold: float = Field(0.95, ge=0, le=1)
    """The confidence from which on a smoothed prediction becomes a label."""
    embedding_dim: int = Field(64, gt=0)
    """Width of the embeddings."""
    temperature: float = Field(0.2, gt=0)
    """What similarities are divided by."""
    smoothing: float = Field(0.9, ge=0, le=1)
    """alpha: share of the prediction itself in a label; the rest is what the memory says."""
    alignment_window: int = Field(32, gt=0)
    """Batches whose mean prediction is made uniform."""


E = TypeVar("E", bound=EmbeddingConfig)


class Embedding(SemiSupervised[E]):
    """Labels are the student's predictions on weak views, aligned so that their mean is uniform, and smoothed."""

    slope: ClassVar[float] = 0.0
    """Of the head's activation below 0."""

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return replace(super().needs(config), over_ranks="gathered")

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        dim, student = self.spec.embedding_dim, self.networks()["student"]
        self.head = new_head(config, student, "projection", lambda width: hidden_head(width, dim, self.slope))
        # mean of those seen: the scale of zeros cancels
        self.mean = MovingMean(setup.num_classes, "window", window=self.spec.alignment_window, start="zero")

    def features(self, k: int = 0) -> tuple[str, ...]:
        return with_prelogits(super().features(k))

    def parts(self, student: str) -> list[nn.Module]:
        return [*super().parts(student), self.head]

    def embedded(self, out: Output, head: nn.Module | None = None) -> Tensor:
        """(B, D) of length 1."""
        return F.normalize(full((head or self.head)(out.features[PRELOGITS])))

    @torch.no_grad()
    def aligned(self, out: Output) -> Tensor:
        """(B, C) probabilities; moves the mean."""
        p = out.logits.softmax(1)
        mean = self.mean(p)
        return aligned(p, mean, torch.full_like(mean, 1 / len(mean)))

    def learned(self, batch: Batch, known: Output, strong: Output, target: Tensor, ctx: Context) -> Step:
        """What is as in FixMatch.

        Args:
            known: what the student gave for labeled images.
            strong: for the view `strong` of unlabeled ones.
            target: (B, C), their smoothed labels.
        """
        labeled, index = batch["labeled"], batch["unlabeled"].views["strong"].index
        used = target.amax(1) >= self.spec.threshold
        pair = Pair(strong, None, target, index, ctx.progress, ctx.draw)
        of_labels = self.losses().target(pair, self.weight("unlabeled_weight", ctx) * used.float())
        losses = {
            "labeled": self.labeled(known, labeled),
            **{f"unlabeled_{name}": value for name, value in of_labels.items()},
            **self.taught(batch, known, strong, ctx),
        }
        return Step(losses, histogram(target.amax(1)), Guesses(index, target.argmax(1), used))
