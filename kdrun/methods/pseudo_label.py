"""Pseudo-Label (Lee 2013): what the network is sure of becomes the label of the very view that it was sure of.

L = mean_labeled H(y, p) + w(t) mean_unlabeled 1[max p >= threshold] l(argmax p, p), where the label has no gradient,
the second mean divides by all unlabeled images of the batch, and w rises to unlabeled_weight. l is what the `loss`
group holds against labels (cross entropy in the paper); the labeled term always is cross entropy.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdrun.core.registry import register
from kdrun.data.views.view import Batch
from kdrun.losses.term import Pair, risen
from kdrun.methods.consistency import RampedConfig
from kdrun.methods.fixmatch import FixMatch, FixMatchConfig
from kdrun.methods.step import Context
from kdrun.models.output import Output


class PseudoLabelConfig(RampedConfig, FixMatchConfig):
    joint_forward: bool = False
    """Labeled and unlabeled images in one pass; false: a pass for each, and the running statistics of batch
    normalisation are those of labeled images, as the re-implementations of the method do."""
    unlabeled_weight: float = Field(1.0, ge=0)
    """What the weight of the unlabeled term rises to."""


@register("method", "pseudo_label")
class PseudoLabel(FixMatch[PseudoLabelConfig]):
    """What the network is sure of becomes the label of the same view."""

    Config = PseudoLabelConfig
    equation = "H(y, p) + min(t / warmup, 1) unlabeled_weight 1[max p(u) >= threshold] H(argmax p(u), p(u))"
    source = "Lee 2013, Pseudo-Label, ICML workshop on challenges in representation learning"
    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}

    def outputs(self, batch: Batch, k: int = 0) -> list[Output]:
        """For labeled images, and twice that for unlabeled ones: what gives the label is what learns it."""
        labeled, unlabeled = (batch[stream].views["weak"] for stream in self.views)
        if self.spec.joint_forward:
            known, new = self.joint([labeled, unlabeled], k)
        else:
            (known,), new = self.joint([labeled], k), self.aside(unlabeled, k=k)
        return [known, new, new]

    def unlabeled(self, pair: Pair, weight: Tensor, ctx: Context, k: int = 0) -> dict[str, Tensor]:
        return super().unlabeled(pair, risen(ctx.progress, self.spec.warmup) * weight, ctx, k)

    def taught(
        self, batch: Batch, known: Output, new: Output, ctx: Context, view: str = "weak", k: int = 0
    ) -> dict[str, Tensor]:
        return super().taught(batch, known, new, ctx, view, k)
