"""Uncertainty-aware distillation (Gore et al. 2025, arXiv 2511.18826): what the teacher is unsure of counts less.

L = sum of all terms of `loss`, those against the teacher with w(x) on each image: in the paper
alpha CE + beta mean_x w(x) tau^2 KL(p_T || p_s), w(x) = 1 - H(p_T) / log C.
"""

from typing import Any

from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor

from kdrun.config import MethodConfig, RunConfig, UncertaintyConfig, plugged
from kdrun.data.views import Batch
from kdrun.losses import Pair
from kdrun.method import Context, Method, Setup, Step
from kdrun.registry import lookup, register
from kdrun.uncertainty import Entropy, Uncertainty


class WeightedConfig(MethodConfig):
    uncertainty: SerializeAsAny[UncertaintyConfig] = Field(default_factory=lambda: Entropy.Config(name="entropy"))
    """How the weight of an image is found."""
    normalize_weights: bool = False
    """Divide by the sum of the weights instead of the number of images."""

    @field_validator("uncertainty", mode="before")
    @classmethod
    def of_its_kind(cls, value: Any) -> Any:
        return value if isinstance(value, UncertaintyConfig) else plugged("uncertainty", value, "method.uncertainty")


@register("method", "uncertainty_distill")
class UncertaintyDistill(Method):
    loss_roles = ("target", "teacher")

    class Config(WeightedConfig):
        pass

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.uncertainty: Uncertainty | None = None  # without a teacher there is nothing to weigh
        if setup.teacher is not None:
            spec: UncertaintyConfig = config.method.uncertainty  # type: ignore[attr-defined]
            self.uncertainty = lookup("uncertainty", spec.name, "method.uncertainty.name")(spec, setup.teacher)

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        if not config.needs_teacher:
            return []
        spec: UncertaintyConfig = config.method.uncertainty  # type: ignore[attr-defined]
        kind = lookup("uncertainty", spec.name, "method.uncertainty.name")
        errors: list[str] = kind.contradictions(config)
        for label, term in config.losses.items():
            loss = lookup("loss", term.name, f"loss.{label}.name")
            if kind.weighs and loss.works_against(term) == "teacher" and not loss.per_sample:
                errors.append(
                    f"loss.{label}: {term.name} is a statistic of the batch, which cannot be weighted per sample; "
                    "choose another loss, or method/uncertainty=none"
                )
        return errors

    def step(self, batch: Batch, ctx: Context) -> Step:
        [pair], weight, metrics = self.pairs(batch, ctx)
        return Step(self.supervised(0, pair, weight), metrics)

    def pairs(self, batch: Batch, ctx: Context) -> tuple[list[Pair], Tensor | None, dict[str, Tensor]]:
        """Every student beside the same pass of the teacher; the weight (B,) of each image; what to log."""
        samples = batch["labeled"]
        view = samples.views["weak"]
        teacher = weight = None
        metrics = {}
        if self.teacher is not None and self.uncertainty is not None:
            wanted = [
                self.uncertainty.features,
                *(self.losses(k).features("teacher") for k in range(len(self.students))),
            ]
            teacher = self.teacher(view, tuple(dict.fromkeys(name for names in wanted for name in names)))
            if self.uncertainty.weighs:
                weight = self.uncertainty.weight(view, teacher, ctx)
                metrics["teacher_weight"] = weight.mean()
                if self.config.method.normalize_weights:  # type: ignore[attr-defined]
                    weight = weight / weight.mean().clamp(min=1e-6)  # all 0 stay 0
        pairs = []
        for k, student in enumerate(self.students.values()):
            output = student(view, self.losses(k).features())
            # Each student draws what it would draw alone.
            pair = Pair(output, teacher, samples.target, view.index, ctx.progress, ctx.again().draw)
            pairs.append(self.keep(pair, k))
        return pairs, weight, metrics

    def supervised(self, k: int, pair: Pair, weight: Tensor | None) -> dict[str, Tensor]:
        """The k-th student's terms of `loss`."""
        losses = self.losses(k)
        return {**losses.target(pair), **losses.teacher(pair, weight)}
