"""Uncertainty-aware distillation (Gore et al. 2025, arXiv 2511.18826): what the teacher is unsure of counts less.

L = sum of all terms of `loss`, those against the teacher with w(x) on each image: in the paper
alpha CE + beta mean_x w(x) tau^2 KL(p_T || p_s), w(x) = 1 - H(p_T) / log C.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.nodes import part_config
from kdrun.config.parts import MethodConfig, UncertaintyConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import lookup, register
from kdrun.core.world import world
from kdrun.data.views.view import Batch, Samples, View
from kdrun.losses.term import Pair
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Setup, Step
from kdrun.methods.uncertainty import Entropy, Uncertainty
from kdrun.models.output import Output


class WeightedConfig(MethodConfig):
    uncertainty: SerializeAsAny[UncertaintyConfig] = Field(default_factory=lambda: Entropy.Config(name="entropy"))
    """How the weight of an image is found."""
    normalize_weights: bool = False
    """Divide by the sum of the weights instead of the number of images."""

    @field_validator("uncertainty", mode="before")
    @classmethod
    def of_its_kind(cls, value: Any) -> Any:
        return (
            value if isinstance(value, UncertaintyConfig) else part_config("uncertainty", value, "method.uncertainty")
        )


W = TypeVar("W", bound=WeightedConfig)


@register("method", "uncertainty_distill")
class UncertaintyDistill(Method[W]):
    """What the teacher is unsure of counts less."""

    Config = WeightedConfig
    equation = (
        "terms of loss against the labels + mean_x w(x) of those against the teacher; uncertainty=entropy: w = 1 - "
        "H(p_T) / log C"
    )
    source = "Gore et al. 2025, arXiv 2511.18826"

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        kind = _kind(cls.spec_of(config))
        return Needs(
            sides=("target", "teacher"), teacher_features=kind.features, unsure_errors=kind.weighs,
            over_ranks="gathered" if cls.spec_of(config).normalize_weights else "mean",
        )  # fmt: skip

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.uncertainty: Uncertainty | None = None  # without a teacher there is nothing to weigh
        if setup.teacher is not None:
            self.uncertainty = _kind(self.spec)(self.spec.uncertainty, setup.teacher)

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        if not config.needs_teacher:
            return []
        kind = _kind(cls.spec_of(config))
        errors = kind.contradictions(config)
        for label, needs in config.term_needs.items():
            if kind.weighs and needs.teacher and not needs.per_sample:
                errors.append(
                    f"loss.{label}: {config.losses[label].name} is a statistic of the batch, which cannot be weighted "
                    "per sample; choose another loss, or method/uncertainty=none"
                )
        return errors

    def step(self, batch: Batch, ctx: Context) -> Step:
        [pair], weight, metrics = self.pairs(batch, ctx)
        return Step(self.supervised(0, pair, weight), metrics)

    def pairs(self, batch: Batch, ctx: Context) -> tuple[list[Pair], Tensor | None, dict[str, Tensor]]:
        """Every student beside the same pass of the teacher; the weight (B,) of each image; what to log."""
        view = batch["labeled"].views["weak"]
        teacher, weight, metrics = self.ask(view, ctx)
        outputs = [student(view, self.losses(k).needed.features) for k, student in enumerate(self.students.values())]
        return self.beside(batch["labeled"], outputs, teacher, ctx), weight, metrics

    def ask(self, view: View, ctx: Context) -> tuple[Output | None, Tensor | None, dict[str, Tensor]]:
        """The teacher's pass; the weight (B,) of each image; what to log."""
        teacher = weight = None
        metrics = {}
        if self.teacher is not None and self.uncertainty is not None:
            teacher = self.teacher(view, self.needed.of_teacher)
            if self.uncertainty.weighs:
                weight = self.uncertainty.weight(view, teacher, ctx)
                metrics["teacher_weight"] = weight.mean()
                if self.spec.normalize_weights:
                    weight = weight / world().mean(weight.mean()).clamp(min=1e-6)  # all 0 stay 0
        return teacher, weight, metrics

    def beside(self, samples: Samples, outputs: Sequence[Output], teacher: Output | None, ctx: Context) -> list[Pair]:
        """What every student gave for the weak views of `samples`, beside what the teacher gave."""
        index = samples.views["weak"].index
        # Each student draws what it would draw alone.
        return [Pair(out, teacher, samples.target, index, ctx.progress, ctx.again().draw) for out in outputs]

    def supervised(self, k: int, pair: Pair, weight: Tensor | None) -> dict[str, Tensor]:
        """The k-th student's terms of `loss`."""
        losses = self.losses(k)
        return {**losses.target(pair), **losses.teacher(pair, weight)}


def _kind(spec: WeightedConfig) -> type[Uncertainty]:
    kind: type[Uncertainty] = lookup("uncertainty", spec.uncertainty.name, "method.uncertainty.name")
    return kind
