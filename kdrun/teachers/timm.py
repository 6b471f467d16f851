"""A network with timm's published weights for the classes of the dataset."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator
from torch import nn

from kdrun.config.model import ModelConfig, with_entry
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.later import later
from kdrun.core.registry import register
from kdrun.models.factory import NetworkFactory
from kdrun.teachers.classes import ClassesConfig, cut, heads_of, numbers
from kdrun.teachers.kind import TeacherKind, frozen

if TYPE_CHECKING:
    import timm
else:
    timm = later("timm")

log = logging.getLogger(__name__)


class TimmConfig(ClassesConfig):
    @model_validator(mode="after")
    def of_a_linear_head(self) -> Self:
        if self.model.head != "linear":
            raise ValueError("teacher.model.head: timm's published weights are of a linear head; set it to linear")
        return self


@register("teacher", "timm")
class TimmTeacher(TeacherKind[TimmConfig]):
    Config = TimmConfig

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        return self._network(factory, fill=True)

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return self._network(factory, fill=False)

    def effective(self, config: RunConfig) -> TimmConfig:
        return super().effective(config).replace(model=with_entry(frozen(self.spec.model)))

    @property
    def published(self) -> list[ModelConfig]:
        return [self.spec.model]

    @property
    def reads_names(self) -> bool:
        return self.spec.reads_names

    def _network(self, factory: NetworkFactory, fill: bool) -> nn.Module:
        asked, key = self.spec.model, f"{self.key}.model"
        found = timm.get_pretrained_cfg(asked.name)
        classes = getattr(found, "num_classes", None)
        if not asked.pretrained or found is None or not found.has_weights:
            raise ConfigError(f"{key}.pretrained: source=timm needs published weights; or choose train or file")
        bare = asked.replace(pretrained=False, file=None)
        if self.spec.classes is not None:
            return self._cut(factory, int(found.num_classes), fill)
        if classes != factory.num_classes:
            raise ConfigError(
                f"{key}.name: {asked.name} was trained for {classes} classes, the dataset has {factory.num_classes}; "
                "its head would be random. Choose source=train or file, or, where the dataset's classes are some of "
                f"its own, {self.key}.classes=auto"
            )
        return factory.network(asked if fill else bare, seed=0, role="teacher")

    def _cut(self, factory: NetworkFactory, classes: int, fill: bool) -> nn.Module:
        """A network of the dataset's classes alone, with what the published one says of them."""
        asked, key, chosen = self.spec.model, f"{self.key}.classes", self.spec.classes
        numbers(chosen or [], classes, factory, key)
        spec = factory.spec_of(asked)
        model = asked.replace(pretrained=False, file=None, mean=list(spec.mean), std=list(spec.std))
        network = factory.network(model, seed=0, role="teacher")
        if fill:
            whole = replace(factory, num_classes=classes).network(asked, seed=0, role="teacher")
            notes: list[str] = []
            state = cut(whole.net.state_dict(), heads_of(factory, model), chosen or [], factory, key, notes)
            network.net.load_state_dict(state)
            log.info("%s: %s", key, notes[0])
        return network
