"""Distillation from a frozen teacher on labeled images (Hinton et al. 2015, arXiv 1503.02531).

The sum of all terms of `loss`: those against the labels and those against the teacher, which sees the same view.
"""

from kdrun.config import MethodConfig
from kdrun.data.views import Batch
from kdrun.method import Context, Method, Step
from kdrun.registry import register


@register("method", "distill")
class Distill(Method):
    loss_roles = ("target", "teacher")
    mixes = True

    class Config(MethodConfig):
        pass

    def step(self, batch: Batch, ctx: Context) -> Step:
        pair = self.pair(batch, ctx)
        return Step({**self.losses().target(pair), **self.losses().teacher(pair)})
