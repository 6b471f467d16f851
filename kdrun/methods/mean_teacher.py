"""Mean Teacher (Tarvainen and Valpola 2017, arXiv 1703.01780): an average of the student's weights is its teacher.

L = terms of `loss` against labels, on labeled images, + w(t) mean_unlabeled mean_c (p(u') - q(u))_c^2, where u and u'
are two weak views of an image, q is the network whose weights are the moving average of the student's, and w rises to
unlabeled_weight. The teacher takes the statistics of its batch, as the student. `averaged` is the network that counts;
both are evaluated.

deviates: the paper's consistency is over labeled and unlabeled images; here it is over the pool, which holds the
labeled ones, too. Its ResNet has a second output; here one does both.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch, View
from kdrun.losses.term import risen
from kdrun.methods.averaged import Averaged
from kdrun.methods.pi_model import PiModel, PiModelConfig
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.network import Network
from kdrun.models.output import Output


class MeanTeacherConfig(PiModelConfig):
    unlabeled_weight: float = Field(50.0, ge=0)
    """What the weight of the squared differences rises to."""
    warmup_shape: Literal["linear", "exponential"] = "linear"
    """How it rises: linear, as re-implementations have it; exponential: exp(-5 (1 - t)^2), as the authors."""
    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the old weights that stays in the average, at most: in step k, from 1, it is min(1 - 1 / k, decay)."""


@register("method", "mean_teacher")
class MeanTeacher(PiModel[MeanTeacherConfig]):
    """An average of the student's weights is the teacher of its unlabeled images."""

    Config = MeanTeacherConfig
    equation = "H(y, p) + w(t / warmup) unlabeled_weight mean_c (p(u') - q(u))^2, q of averaged weights"
    source = "Tarvainen and Valpola 2017, arXiv 1703.01780"

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.averaged = Averaged(self.networks()["student"], self.spec.decay)

    def step(self, batch: Batch, ctx: Context) -> Step:
        if not ctx.goes_on:
            self.averaged.follow(self.networks()["student"])
        return super().step(batch, ctx)

    def target(self, view: View) -> Output:
        out: Output = self.averaged(view)
        return out

    def rise(self, ctx: Context) -> float | Tensor:
        return risen(ctx.progress, self.spec.warmup, self.spec.warmup_shape)

    def predict(self, view: View) -> dict[str, Tensor]:
        return {**super().predict(view), "averaged": self.averaged(view).logits}

    def kept(self) -> dict[str, Network]:
        return {**super().kept(), "averaged": self.averaged.network}

    @property
    def headline(self) -> str:
        return "averaged"
