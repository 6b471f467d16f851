"""Distillation from a frozen teacher on labeled images (Hinton et al. 2015, arXiv 1503.02531).

The sum of all terms of `loss`: those against the labels and those against the teacher, which sees the same view.
"""

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step


@register("method", "distill")
class Distill(Method[MethodConfig]):
    """Distillation from a frozen teacher on labeled images."""

    equation = (
        "sum of the terms of loss, those against the labels and those against the teacher, which sees the same view"
    )
    source = "Hinton et al. 2015, arXiv 1503.02531"

    class Config(MethodConfig):
        pass

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(sides=("target", "teacher"), takes_mixed=True, over_ranks="mean")

    def step(self, batch: Batch, ctx: Context) -> Step:
        pair = self.pair(batch, ctx)
        return Step({**self.losses().target(pair), **self.losses().teacher(pair)})
