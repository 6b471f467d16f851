"""Training on labels alone: the baseline of every table, and the maker of teachers."""

from kdrun.config.parts import MethodConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step


@register("method", "supervised")
class Supervised(Method):
    mixes = True

    class Config(MethodConfig):
        pass

    def step(self, batch: Batch, ctx: Context) -> Step:
        return Step(self.losses().target(self.pair(batch, ctx)))
