"""Training on labels alone: the baseline of every table, and the maker of teachers.

The head of a CLIP may start from the names of the classes, as in the fine-tuning of ELEVATER (see `names`).
"""

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.names import NamesConfig, names_contradictions, start_from_names
from kdrun.methods.step import Context, Setup, Step


@register("method", "supervised")
class Supervised(Method[NamesConfig]):
    """Training on labels alone: the baseline of every table, and the maker of teachers."""

    Config = NamesConfig
    equation = "sum of the terms of loss against the labels: H(y, p) with loss=ce"
    source = "the usual training of a classifier"

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        spec = config.method  # a plug-in's may be another kind
        if isinstance(spec, NamesConfig) and spec.language_aware_init != "none":
            start_from_names([net.net.get_classifier() for net in self.networks().values()], config, setup)

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(takes_mixed=True, over_ranks="mean")

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        return names_contradictions(config)

    def step(self, batch: Batch, ctx: Context) -> Step:
        return Step(self.losses().target(self.pair(batch, ctx)))
