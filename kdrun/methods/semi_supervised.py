"""What methods share that learn from unlabeled images beside labeled ones: streams, passes, a teacher beside them.

A teacher may stand beside each of them: the terms of `loss` against it are added, on the weak views of labeled images
and on the views of unlabeled ones that the method learns from, two means that are summed. None of the papers has one.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs, recipe_of
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.data.views.view import Batch, Samples, View, together
from kdrun.losses.labels import cross_entropy
from kdrun.losses.term import Pair
from kdrun.methods.augment import Augment
from kdrun.methods.method import Method
from kdrun.methods.sho import against_teacher
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.network import kept_statistics
from kdrun.models.output import Output


class SemiSupervisedConfig(MethodConfig):
    unlabeled_ratio: int = Field(7, gt=0)
    """mu: unlabeled images for each labeled one in a batch."""
    unlabeled_weight: float = Field(1.0, ge=0)
    """lambda_u."""


U = TypeVar("U", bound=SemiSupervisedConfig)


class SemiSupervised(Method[U]):
    """A subclass names its `views` and writes `step`."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}
    """Stream -> the views that it should carry; `weak_2` is a weak view of its own, and so on."""

    @classmethod
    def views_of(cls, config: RunConfig) -> dict[str, tuple[str, ...]]:
        """`views`, of which a configuration may want fewer."""
        return cls.views

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        streams = dict(cls.views_of(config))
        if config.views.strong.learns and any(is_strong(view) for views in streams.values() for view in views):
            streams["labeled"] = (*streams["labeled"], "probe")
        return Needs(streams=streams, sides=("target", "teacher"), over_ranks="mean")

    @classmethod
    def batch_sizes(cls, config: RunConfig) -> dict[str, int]:
        size = config.schedule.batch_size
        return {"labeled": size, "unlabeled": size * cls.spec_of(config).unlabeled_ratio}

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if setup.num_classes < 2:
            raise ConfigError(f"method={config.method.name} learns which class an image is of, and there is only one")
        strong = config.views.strong
        learns = strong.learns and "probe" in self.needs(config).streams["labeled"]
        self.augment = Augment(strong.rate_threshold, strong.rate_decay) if learns else None

    def forward(self, batch: Batch, ctx: Context) -> Step:
        return super().forward(batch if self.augment is None else self.augment.augmented(batch), ctx)

    @property
    def probes(self) -> bool:
        return self.augment is not None

    def probe(self, batch: Batch) -> None:
        if self.augment is not None:
            self.augment.learn(batch["labeled"], self.students.values())

    def features(self, k: int = 0) -> tuple[str, ...]:
        """What the k-th student is asked for beside its logits."""
        return self.losses(k).needed.features

    def joint(self, views: Sequence[View], k: int = 0) -> list[Output]:
        """The k-th student on several views in one pass: batch normalisation sees them together."""
        out: Output = list(self.students.values())[k](together(views), self.features(k))
        return out.split([len(view.index) for view in views])

    def aside(self, view: View, gradient: bool = True, k: int = 0) -> Output:
        """The k-th student on a view in a pass of its own, by the statistics of that batch, which leaves the running
        statistics of batch normalisation alone: those are of labeled images."""
        student = list(self.students.values())[k]
        with kept_statistics(student), nullcontext() if gradient else torch.no_grad():
            out: Output = student(view, self.features(k))
        if not gradient:
            torch.clear_autocast_cache()  # or a later pass may take weights that were cast here, without gradient
        return out

    def labeled(self, known: Output, labeled: Samples, weight: Tensor | None = None) -> Tensor:
        """Cross entropy of labeled images, ().

        Args:
            weight: (L,), of each of them in the mean; None: all alike.
        """
        each = cross_entropy(known.logits, label_of(labeled))
        return (each if weight is None else weight * each).mean()

    def terms(self, known: Output, batch: Batch, ctx: Context, view: str = "weak") -> dict[str, Tensor]:
        """The terms of `loss` against the labels of labeled images."""
        labeled = batch["labeled"]
        index = labeled.views[view].index
        return self.losses().target(Pair(known, None, label_of(labeled), index, ctx.progress, ctx.draw))

    def taught(
        self, batch: Batch, known: Output, new: Output, ctx: Context, view: str = "strong", k: int = 0
    ) -> dict[str, Tensor]:
        """The terms of `loss` against the teacher, where there are any.

        Args:
            known: what the k-th student gave for the weak views of labeled images.
            new: for unlabeled ones, in this view.
        """
        losses = self.losses(k)
        if self.teacher is None or not losses.labels_of("teacher"):
            return {}
        shown = [batch["labeled"].views["weak"], batch["unlabeled"].views[view]]
        one, other = self.teacher(together(shown), losses.needed.of_teacher).split([len(v.index) for v in shown])
        first = Pair(known, one, batch["labeled"].target, shown[0].index, ctx.progress, ctx.draw)
        second = Pair(new, other, other.logits.argmax(1), shown[1].index, ctx.progress, ctx.draw)
        return against_teacher(losses, first, second)


def is_strong(view: str) -> bool:
    return recipe_of(view) == "strong"


def label_of(labeled: Samples) -> Tensor:
    """(B,) int64. Raises KdrunError for a stream without labels."""
    if labeled.target is None:
        raise KdrunError("the labeled stream has no labels")
    return labeled.target
