"""Distillation from a frozen teacher on labeled images (Hinton et al. 2015, arXiv 1503.02531).

The sum of all terms of `loss`: those against the labels and those against the teacher, which sees the same view.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step


class DistillConfig(MethodConfig):
    views: list[Literal["weak", "strong"]] = Field(["weak"], min_length=1)
    """Of each image, those that both networks see, one after the other; all terms are added on each."""

    @model_validator(mode="after")
    def each_once(self) -> Self:
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views: each is shown once, got {self.views}")
        return self


@register("method", "distill")
class Distill(Method[DistillConfig]):
    """Distillation from a frozen teacher on labeled images."""

    equation = (
        "sum of the terms of loss, those against the labels and those against the teacher, which sees the same view"
    )
    source = "Hinton et al. 2015, arXiv 1503.02531"

    Config = DistillConfig

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(
            streams={"labeled": views_of(config)}, sides=("target", "teacher"), takes_mixed=True, over_ranks="mean"
        )  # fmt: skip

    def step(self, batch: Batch, ctx: Context) -> Step:
        losses, out = self.losses(), dict[str, Tensor]()
        for view in views_of(self.config):
            pair, prefix = self.pair(batch, ctx, view=view), "" if view == "weak" else f"{view}_"
            found = {**losses.target(pair), **losses.teacher(pair)}
            out |= {f"{prefix}{label}": value for label, value in found.items()}
        return Step(out)


def views_of(config: RunConfig) -> tuple[str, ...]:
    """What the networks see of each image; the configuration of a method that derives from this one may not say."""
    spec = config.method
    return tuple(spec.views) if isinstance(spec, DistillConfig) else ("weak",)
