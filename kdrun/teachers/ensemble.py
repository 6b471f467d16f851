"""Several teachers as one: the logits are the logarithm of the mean of their probabilities, or the mean of logits.

`loss=kd` at temperature 1 against the mean of probabilities has the gradient of the mean of the losses against each: KL
to the mean and the mean of KLs differ by what does not depend on the student. At other temperatures `loss=avgkd` is
that mean of losses. Against the mean of logits the gradient is another.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator
from torch import nn

from kdrun.config.run import RunConfig
from kdrun.config.teacher import MembersConfig
from kdrun.core.registry import register
from kdrun.models.factory import NetworkFactory
from kdrun.teachers.kind import MembersKind
from kdrun.teachers.wrap import Ensemble


class EnsembleConfig(MembersConfig):
    mean: Literal["probabilities", "logits"] = "probabilities"
    """What of its members is averaged."""

    @model_validator(mode="after")
    def of_several(self) -> Self:
        if len(self.members) < 2:
            raise ValueError(f"an ensemble needs two teacher.members or more, got {len(self.members)}")
        return self


@register("teacher", "ensemble")
class EnsembleTeacher(MembersKind[EnsembleConfig]):
    Config = EnsembleConfig
    features = ("members",)

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        return Ensemble(self.members(factory, runs, role, outputs), self.spec.mean)

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return Ensemble(self.outlines(factory), self.spec.mean)

    def contradictions(self, config: RunConfig) -> list[str]:
        asked = [label for label, needs in config.term_needs.items() if "members" in needs.of_teacher]
        if not asked or self.spec.temperature == 1:
            return []
        return [
            f"{self.key}.temperature: divides the logits of the ensemble, and loss.{asked[0]} looks at its members; "
            "give each its own (teacher.members), or set it to 1"
        ]
