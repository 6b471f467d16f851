"""The teacher itself as a row of a table, e.g. zero-shot CLIP (Radford et al. 2021, arXiv 2103.00020): no training."""

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.methods.method import Method


@register("method", "zero_shot")
class ZeroShotTeacher(Method[MethodConfig]):
    """The teacher itself as a row of a table."""

    equation = "nothing is trained: p = p_t"
    source = "a CLIP's: Radford et al. 2021, arXiv 2103.00020"

    class Config(MethodConfig):
        pass

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(
            teacher=True, streams={}, sides=("target", "teacher"), students=(0, 0), trains=False, over_ranks="mean"
        )

    @property
    def headline(self) -> str:
        return "teacher"
