"""A network with timm's published weights for the classes of the dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import timm
from pydantic import model_validator
from torch import nn

from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.config.teacher import NetworkConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.models.factory import NetworkFactory
from kdrun.teachers.kind import TeacherKind, frozen


class TimmConfig(NetworkConfig):
    @model_validator(mode="after")
    def of_a_linear_head(self) -> Self:
        if self.model.head != "linear":
            raise ValueError("teacher.model.head: timm's published weights are of a linear head; set it to linear")
        return self


@register("teacher", "timm")
class TimmTeacher(TeacherKind[TimmConfig]):
    Config = TimmConfig

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        return self._network(factory, self.spec.model)

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return self._network(factory, self.spec.model.replace(pretrained=False))

    def effective(self, config: RunConfig) -> TimmConfig:
        return super().effective(config).replace(model=frozen(self.spec.model))

    @property
    def published(self) -> list[ModelConfig]:
        return [self.spec.model]

    def _network(self, factory: NetworkFactory, model: ModelConfig) -> nn.Module:
        asked, key = self.spec.model, f"{self.key}.model"
        found = timm.get_pretrained_cfg(asked.name)
        classes = getattr(found, "num_classes", None)
        if not asked.pretrained or found is None or not found.has_weights:
            raise ConfigError(f"{key}.pretrained: source=timm needs published weights; or choose train or file")
        if classes != factory.num_classes:
            raise ConfigError(
                f"{key}.name: {asked.name} was trained for {classes} classes, the dataset has {factory.num_classes}; "
                "its head would be random. Choose source=train or file"
            )
        return factory.network(model, seed=0, role="teacher")
