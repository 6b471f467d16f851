"""MixMatch (Berthelot et al. 2019, arXiv 1905.02249): guessed labels, and labeled and unlabeled images mixed.

The mean of the student's predictions on two weak views of an unlabeled image, sharpened, is the label of both. Labeled
images and both views are mixed as one list (`kdrun.methods.batch_mixup`). On mixed images at the places of labeled ones
the terms of `loss` against labels hold (cross entropy in the paper), which here are mixed too; at those of unlabeled
ones mean_b mean_c (p - y)^2, whose weight rises from 0 over the share `warmup` of the run.

A teacher beside is asked about the mixed images themselves.
"""

from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch, Samples, View, together
from kdrun.losses.term import Pair, factor, risen
from kdrun.methods.batch_mixup import BatchMixup, in_passes
from kdrun.methods.consistency import squared
from kdrun.methods.fixmatch import histogram
from kdrun.methods.labeler import one_hot, sharpened
from kdrun.methods.semi_supervised import SemiSupervised, SemiSupervisedConfig, label_of
from kdrun.methods.step import Context, Guesses, Setup, Step
from kdrun.models.output import Output


class MixMatchConfig(SemiSupervisedConfig):
    unlabeled_ratio: int = Field(1, gt=0)
    """Unlabeled images for each labeled one in a batch."""
    unlabeled_weight: float = Field(75.0, ge=0)
    """lambda_u, once `warmup` is over."""
    temperature: float = Field(0.5, gt=0)
    """T: guessed labels are p^(1/T), renormalised."""
    alpha: float = Field(0.75, gt=0)
    """Of Beta(alpha, alpha), which shares are drawn from."""
    per: Literal["sample", "batch"] = "sample"
    """What a share is drawn for: each image, or the batch."""
    warmup: float = Field(1 / 64, ge=0, le=1)
    """Share of the run over which the weight rises from 0; 0: it does not."""
    interleave: bool = True
    """Passes of as many mixed images as there are labeled ones, each with images of all batches of the list, as the
    authors; false: each of one batch. Only the first moves the running statistics of batch normalisation."""


M = TypeVar("M", bound=MixMatchConfig)


@register("method", "mixmatch")
class MixMatch(SemiSupervised[M]):
    """Guessed labels, and labeled and unlabeled images mixed."""

    # deviates: the authors interleave neighboring rows of each batch, we every P-th one, which ranks can share; rows of
    # a batch are in random order.
    Config = MixMatchConfig
    equation = (
        "H(y~, p(x~)) + unlabeled_weight min(1, progress / warmup) mean_c (p(u~)_c - q~_c)^2, x~, u~ mixed of all "
        "images with Beta(alpha, alpha), q the mean p of two weak views, sharpened by temperature"
    )
    source = "Berthelot et al. 2019, arXiv 1905.02249"
    views: ClassVar = {"labeled": ("weak",), "unlabeled": ("weak", "weak_2")}

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return replace(super().needs(config), over_ranks="gathered")

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors, name = super().contradictions(config), config.method.name
        if "target" not in config.sides:
            errors.append(f"loss: method={name} needs a term against the labels of mixed images; add one, e.g. loss=ce")
        errors += [
            f"loss.{label}: {config.losses[label].name} remembers single images, and method={name} mixes them; choose "
            "another term"
            for label, needs in config.term_needs.items()
            if needs.index
        ]
        if config.schedule.last_batch == "small":
            errors.append(
                f"schedule.last_batch: method={name} mixes as many labeled images in each step; set it to full"
            )
        return errors

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.mixup = BatchMixup(self.spec.alpha, self.spec.per)

    def step(self, batch: Batch, ctx: Context) -> Step:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        guess = self.guessed(unlabeled)
        given = [labeled.views["weak"], *self.listed(unlabeled)]
        onehot = one_hot(label_of(labeled), guess.shape[1])
        views, targets = self.mixup(given, [onehot, *[guess] * (len(given) - 1)], ctx)
        known, *new = self.through(views)
        losses = self.losses().target(Pair(known, None, targets[0], views[0].index, ctx.progress, ctx.draw))
        of_mixed = self.of_unlabeled(torch.cat([out.logits for out in new]), torch.cat(targets[1:])).mean()
        losses["unlabeled"] = self.rising("unlabeled_weight", ctx) * of_mixed
        losses |= self.beside(unlabeled, guess, ctx)
        mixed = {"labeled": Samples({"weak": views[0]}, targets[0]), "unlabeled": Samples({"mixed": views[1]}, None)}
        losses |= self.taught(mixed, known, new[0], ctx, "mixed")
        guesses = Guesses(given[1].index, guess.argmax(1), torch.ones_like(given[1].index, dtype=torch.bool))
        return Step(losses, histogram(guess.amax(1)), guesses)

    def guessed(self, unlabeled: Samples) -> Tensor:
        """The labels of unlabeled images, (B, C) probabilities without gradient."""
        seen = [self.aside(view, gradient=False).logits.softmax(1) for view in unlabeled.views.values()]
        return sharpened(torch.stack(seen).mean(0), self.spec.temperature)

    def listed(self, unlabeled: Samples) -> list[View]:
        """The views that are mixed."""
        return list(unlabeled.views.values())

    def of_unlabeled(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of mixed images at the places of unlabeled ones, (B, C), (B, C) -> (B,)."""
        return squared(logits, target)

    def beside(self, unlabeled: Samples, guess: Tensor, ctx: Context) -> dict[str, Tensor]:
        """Losses of images that are not mixed."""
        return {}

    def rising(self, weight: str, ctx: Context) -> float | Tensor:
        """`method.<weight>` as far as it has risen."""
        return self.weight(weight, ctx) * factor(risen(ctx.progress, self.spec.warmup))

    def through(self, views: list[View]) -> list[Output]:
        """What the student gives for each of the mixed batches."""
        sizes, joint = [len(view.index) for view in views], together(views)
        passes = in_passes(sizes, self.spec.interleave, joint.index.device)
        first, *others = [View(joint.pixels[rows], joint.index[rows]) for rows in passes]
        student, features = self.networks()["student"], self.features()
        outs: list[Output] = [student(first, features), *(self.aside(view) for view in others)]
        back = passes.flatten().argsort()
        kept = {name: torch.cat([out.features[name] for out in outs])[back] for name in features}
        return Output(torch.cat([out.logits for out in outs])[back], kept).split(sizes)
