"""Training on labels alone: the baseline of every table, and the maker of teachers."""

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step


@register("method", "supervised")
class Supervised(Method[MethodConfig]):
    class Config(MethodConfig):
        pass

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(takes_mixed=True)

    def step(self, batch: Batch, ctx: Context) -> Step:
        return Step(self.losses().target(self.pair(batch, ctx)))
