"""Mixup distillation (Medina et al. 2026, arXiv 2606.12171): student and teacher on the same mixed images.

x~ = lambda x + (1 - lambda) x_j with lambda ~ Beta(alpha, alpha), and the frozen teacher is asked about x~ itself, not
about x and x_j. The authors minimise T^2 mean KL(p_t(x~) || p_s(x~)) alone (`loss=kd_noce`); a term against the labels
gets lambda y + (1 - lambda) y_j. This is `distill` with `views.mix`, which it demands.
"""

from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.methods.distill import Distill


@register("method", "mixup_distill")
class MixupDistill(Distill):
    """Student and teacher see the same mixed images."""

    equation = (
        "as distill, on x~ = lambda x_i + (1 - lambda) x_j with lambda y_i + (1 - lambda) y_j; the paper: T^2 "
        "KL(p_t(x~) || p_s(x~))"
    )
    source = "Medina et al. 2026, arXiv 2606.12171"

    class Config(MethodConfig):
        pass

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        if config.views.mix.kind == "none":
            return ["views.mix.kind: none, but method=mixup_distill mixes; choose mixup or cutmix, or method=distill"]
        return []
