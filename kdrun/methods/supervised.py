"""Training on labels alone: the baseline of every table, and the maker of teachers."""

from kdrun.config import MethodConfig
from kdrun.data.views import Batch
from kdrun.method import Context, Method, Step
from kdrun.registry import register


@register("method", "supervised")
class Supervised(Method):
    mixes = True

    class Config(MethodConfig):
        pass

    def step(self, batch: Batch, ctx: Context) -> Step:
        return Step(self.losses().target(self.pair(batch, ctx)))
