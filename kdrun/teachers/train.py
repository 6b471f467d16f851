"""A network that an ordinary run trains: built once, and shared by all that ask for the same. train: on labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field
from torch import nn

from kdrun.config.derived import supervised
from kdrun.config.run import RunConfig
from kdrun.config.teacher import LabelsConfig, NetworkConfig, RecipeConfig
from kdrun.config.views import MixConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup, register
from kdrun.models.factory import NetworkFactory
from kdrun.models.network import load_network
from kdrun.teachers.kind import TeacherKind


class OwnTrainingConfig(NetworkConfig, RecipeConfig, LabelsConfig):
    mix: MixConfig = Field(default_factory=MixConfig)
    """Mixed images in the teacher's own training; `views.mix` is for the student's."""


T = TypeVar("T", bound=OwnTrainingConfig)


class OwnTraining(TeacherKind[T]):
    """A kind whose network is that of a run with one student."""

    as_its_run = True
    trains_model = True

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        return load_network(runs[role] / "student.safetensors")

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return factory.network(self.spec.model.replace(pretrained=False), seed=0, role="teacher")

    def changes(self, config: RunConfig) -> dict[str, Any]:
        """What its run has other than `config`, whose data and recipe it shares, beside method, losses and teacher."""
        spec = self.spec
        schedule = spec.schedule or config.schedule
        if spec.steps is not None or spec.epochs is not None:
            schedule = schedule.replace(steps=spec.steps, epochs=spec.epochs)
        dataset = config.dataset
        if dataset.split_file is None:  # else it sees what the file names as labeled
            drawn = spec.num_labels is not None
            dataset = dataset.replace(num_labels=spec.num_labels, split_seed=config.split_seed if drawn else None)
        return {
            "students": [spec.model], "views": config.views.replace(mix=spec.mix), "schedule": schedule,
            "dataset": dataset, "seed": spec.seed,
        }  # fmt: skip

    def effective(self, config: RunConfig) -> T:
        return super().effective(config).replace(mix=self.spec.mix.effective())

    @property
    def draws_labels(self) -> bool:
        return self.spec.num_labels is not None

    @property
    def follows_schedule(self) -> bool:
        return self.spec.schedule is None


class TrainConfig(OwnTrainingConfig):
    loss: str = "ce"
    """What it is trained with, a loss term against labels, e.g. evidential."""


@register("teacher", "train")
class TrainedTeacher(OwnTraining[TrainConfig]):
    Config = TrainConfig

    def runs(self, config: RunConfig, role: str) -> dict[str, RunConfig]:
        spec, key = self.spec, f"{self.key}.loss"
        loss = lookup("loss", spec.loss, key)
        term = loss.Config(name=spec.loss)
        if loss.needs(term).teacher:
            raise ConfigError(f"{key}: {spec.loss} works against a teacher; choose a loss against labels, e.g. ce")
        return {role: supervised(config, losses={term.name: term}, **self.changes(config))}

    def trained_with(self, loss: str) -> bool:
        return self.spec.loss == loss
