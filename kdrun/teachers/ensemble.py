"""Several teachers as one: the logits are the logarithm of the mean of their probabilities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import model_validator
from torch import nn

from kdrun.config.teacher import MembersConfig
from kdrun.core.registry import register
from kdrun.models.factory import NetworkFactory
from kdrun.teachers.kind import MembersKind
from kdrun.teachers.wrap import Ensemble


class EnsembleConfig(MembersConfig):
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
        return Ensemble(self.members(factory, runs, role, outputs))

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return Ensemble(self.outlines(factory))
