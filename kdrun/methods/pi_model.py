"""Pi-model (Laine and Aila 2017, arXiv 1610.02242): an image is predicted alike on two of its weak views.

L = terms of `loss` against labels, on labeled images, + w(t) mean_unlabeled mean_c (p(u') - p(u))_c^2, where u and u'
are two weak views of an image, p(u) has no gradient, and w rises to unlabeled_weight. The running statistics of batch
normalisation are those of labeled images.

deviates: the paper sends a gradient through both predictions and takes labeled images among the others; its
re-implementations, whose numbers tables show, stop one, and draw the unlabeled images from the pool, which here holds
the labeled ones, too.
"""

from typing import ClassVar, TypeVar

from pydantic import Field
from torch import Tensor

from kdrun.core.registry import register
from kdrun.data.views.view import Batch, View
from kdrun.losses.term import risen
from kdrun.methods.consistency import RampedConfig, squared
from kdrun.methods.semi_supervised import SemiSupervised
from kdrun.methods.step import Context, Step
from kdrun.models.output import Output


class PiModelConfig(RampedConfig):
    unlabeled_weight: float = Field(10.0, ge=0)
    """What the weight of the squared differences rises to."""


P = TypeVar("P", bound=PiModelConfig)


@register("method", "pi_model")
class PiModel(SemiSupervised[P]):
    """An image is predicted alike on two of its weak views."""

    Config = PiModelConfig
    equation = "H(y, p) + min(t / warmup, 1) unlabeled_weight mean_c (p(u') - p(u))^2, no gradient to p(u)"
    source = "Laine and Aila 2017, arXiv 1610.02242"
    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "weak_2")}

    def step(self, batch: Batch, ctx: Context) -> Step:
        labeled, shown = batch["labeled"].views["weak"], batch["unlabeled"].views
        (known,) = self.joint([labeled])
        target = self.target(shown["weak"]).logits.softmax(1)
        new = self.aside(shown["weak_2"])
        apart = self.rise(ctx) * squared(new.logits, target).mean()
        losses = {
            **self.terms(known, batch, ctx),
            "consistency": self.weight("unlabeled_weight", ctx) * apart,
            **self.taught(batch, known, new, ctx, "weak_2"),
        }
        return Step(losses)

    def rise(self, ctx: Context) -> float | Tensor:
        """Factor on unlabeled_weight."""
        return risen(ctx.progress, self.spec.warmup)

    def target(self, view: View) -> Output:
        """What the other view is held against, without gradient."""
        return self.aside(view, gradient=False)
