"""Dual-head knowledge distillation (DHKD: Yang et al. 2024, arXiv 2411.08937): a rival in DHO's tables.

Cross entropy goes onto the student's own classifier and a loss between logits, `binary_kl`, onto a second head on the
same features, which is thrown away: the classifier alone predicts. Where the teacher's gradient, one vector over all
parameters, goes against that of the labels, its part along that one is taken out (gradient alignment; of the two only
this one changes, unlike in PCGrad).

deviates: the paper trains on labels alone (unlabeled_ratio=0); here unlabeled images join the terms against the teacher
as in `kdrun.methods.sho`, because that is where DHO's paper (arXiv 2505.07675, table 1) sets it. How it does is not
stated. The second head sees labeled and unlabeled images apart, each with its own batch statistics.
"""

from collections.abc import Callable
from typing import Literal, Self

from pydantic import model_validator
from torch import Tensor, nn

from kdrun.core.registry import register
from kdrun.methods.sho import SHOConfig
from kdrun.methods.step import Context
from kdrun.methods.two_heads import TwoHeads
from kdrun.models.heads import NarrowHead
from kdrun.models.output import Output


class DHKDConfig(SHOConfig):
    gradient_alignment: bool = True
    """Take out of the teacher's gradient what goes against that of the labels; two backward passes."""
    kd_head: Literal["nonlinear", "linear"] = "nonlinear"
    """The second head; nonlinear: Linear 200, dropout 0.1, batch normalisation, ReLU, Linear."""

    @model_validator(mode="after")
    def one_surgery(self) -> Self:
        if self.pcgrad and self.gradient_alignment:
            raise ValueError("pcgrad: gradient_alignment does another surgery; set one of them to false")
        return self

    @property
    def surgery(self) -> str | None:
        return "gradient_alignment" if self.gradient_alignment else super().surgery


@register("method", "dhkd")
class DHKD(TwoHeads[DHKDConfig]):
    """Labels teach the classifier and logits of the teacher a second head, which is thrown away."""

    Config = DHKDConfig
    equation = (
        "terms against the labels with h_CE + terms against the teacher with a second head; of its gradient g only g "
        "- min(<g, g_CE>, 0) g_CE / |g_CE|^2 counts (gradient_alignment)"
    )
    source = "Yang et al. 2024, arXiv 2411.08937"

    def second_head(self, dim: int) -> tuple[str, Callable[[], nn.Module]]:
        kind, classes = self.spec.kd_head, self.setup.num_classes
        return kind, lambda: NarrowHead(dim, classes) if kind == "nonlinear" else nn.Linear(dim, classes)

    def heads(self, out: Output, ctx: Context | None = None) -> tuple[Tensor, Tensor]:
        features = out.features[self.shared]
        if isinstance(self.kd_head, NarrowHead):
            noise = None if ctx is None else ctx.draw(len(features), NarrowHead.WIDTH)
            return out.logits, self.kd_head(features, noise).float()
        return out.logits, self.kd_head(features).float()
