"""Where the teacher comes from: what the kinds of teachers share. Each kind has its own keys, in kdrun/teachers/."""

from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from kdrun.config.dataset import NumLabels
from kdrun.config.model import ModelConfig
from kdrun.config.parts import TermConfig
from kdrun.config.schedule import MOST_STEPS, ScheduleConfig
from kdrun.core.registry import lookup
from kdrun.core.schema import Schema


class CacheConfig(Schema):
    """Logits of the teacher that are computed once and shared by runs, students and seeds."""

    mode: Literal["off", "clean", "views"] = "off"
    """off: the teacher sees every view afresh; clean: images themselves, where views.weak has no randomness; views:
    every image has `num_views` weak views, the same in all runs, which students see too, one in each epoch."""
    num_views: int = Field(8, ge=1, le=10_000)
    """K of mode=views."""

    @field_validator("mode", mode="before")
    @classmethod
    def word(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of a bare off

    @property
    def draws(self) -> int:
        """Stored views of each image; 0: none."""
        return {"off": 0, "clean": 1, "views": self.num_views}[self.mode]

    def effective(self) -> "CacheConfig":
        """Without what has no effect."""
        return self if self.mode == "views" else CacheConfig(mode=self.mode)


class TeacherConfig(Schema):
    """Where the teacher comes from: what all kinds have; of source=none it is all."""

    source: str = "none"
    """Which kind: a name that a class of kdrun/teachers/ is registered under."""
    temperature: float = Field(1.0, gt=0)
    """What the frozen teacher's logits are divided by wherever it is asked: above 1 it is less confident, below 1 more,
    as accurate as before. Its own training knows nothing of it; a loss term's temperature comes on top."""
    cache: CacheConfig = Field(default_factory=CacheConfig)
    precision: Literal["fp32", "bf16"] | None = None
    """Autocast type of the frozen teacher in training, whatever that of the students is; null: schedule.precision, in
    which it is evaluated too."""

    def kind(self, key: str = "teacher") -> Any:
        """The registered class of `source` around this configuration, a `kdrun.teachers.kind.TeacherKind`.

        Args:
            key: where this stands in the configuration of the run, for messages.
        """
        return lookup("teacher", self.source, f"{key}.source")(self, key)

    @property
    def kinds(self) -> list[Any]:
        """Those of this teacher and of the teachers that it is made of."""
        return [part.kind(key) for key, part in self.parts().items()]

    def parts(self, key: str = "teacher") -> "dict[str, TeacherConfig]":
        """Dotted key -> this teacher, and those that it is made of."""
        return {key: self}

    @property
    def models(self) -> list[ModelConfig]:
        """All networks of timm in this teacher."""
        return [part.model for part in self.parts().values() if isinstance(part, NetworkConfig)]

    @property
    def reads_names(self) -> bool:
        """Whether it depends on the names of the classes."""
        return any(kind.is_clip or kind.reads_names for kind in self.kinds)


class NetworkConfig(TeacherConfig):
    """A teacher that is one network of timm."""

    model: ModelConfig

    @model_validator(mode="after")
    def has_a_classifier(self) -> Self:
        if self.model.new_head:
            raise ValueError("teacher.model.new_head: a frozen teacher would have a random classifier; set it to false")
        return self


class MembersConfig(TeacherConfig):
    """A teacher that is made of others."""

    members: list[SerializeAsAny[TeacherConfig]] = Field(default_factory=list)

    def parts(self, key: str = "teacher") -> dict[str, TeacherConfig]:
        out: dict[str, TeacherConfig] = {key: self}
        for i, member in enumerate(self.members):
            out |= member.parts(f"{key}.members.{i}")
        return out

    @model_validator(mode="after")
    def of_teachers(self) -> Self:
        for i, member in enumerate(self.members):
            if not member.kind().present:
                raise ValueError(f"teacher.members.{i}.source: {member.source} is no teacher; choose another")
        if any(member.cache.mode != "off" for member in self.members):
            raise ValueError("teacher.members.*.cache: the ensemble is kept as one; set teacher.cache instead")
        if any(member.precision is not None for member in self.members):
            raise ValueError("teacher.members.*.precision: the members are asked as one; set teacher.precision instead")
        return self


class OwnRunConfig(TeacherConfig):
    """A teacher that a run of its own makes."""

    seed: int = Field(0, ge=0)
    steps: int | None = Field(None, gt=0, le=MOST_STEPS)
    epochs: float | None = Field(None, gt=0, le=MOST_STEPS)
    """Length of that run; neither: as long as the student's (clip: 600 steps; tip_adapter: 20 epochs)."""

    @model_validator(mode="after")
    def one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give teacher.steps or teacher.epochs, not both")
        return self


class LabelsConfig(OwnRunConfig):
    """A teacher whose own run may see other labels than the student."""

    num_labels: NumLabels = None
    """Labeled images that the teacher sees; null: all that validation leaves (or that dataset.split_file names)."""


class RecipeConfig(OwnRunConfig):
    """A teacher whose own run may have a schedule of its own."""

    schedule: ScheduleConfig | None = None
    """The recipe of that run; null: the student's, or that of Tip-Adapter-F."""

    @model_validator(mode="after")
    def one_recipe(self) -> Self:
        if self.schedule is not None and (self.steps, self.epochs) != (None, None):
            raise ValueError("teacher.schedule has a length of its own; leave teacher.steps and teacher.epochs null")
        return self


class TaughtConfig(OwnRunConfig):
    """A teacher whose own run is taught by another one."""

    teacher: SerializeAsAny[TeacherConfig]
    """Who teaches it, with the keys of its kind."""
    terms: dict[str, SerializeAsAny[TermConfig]] = Field(default_factory=dict)
    """What it is trained with, as `loss`; one term at least is against that teacher."""

    def parts(self, key: str = "teacher") -> dict[str, TeacherConfig]:
        return {key: self, **self.teacher.parts(f"{key}.teacher")}

    @model_validator(mode="after")
    def is_taught(self) -> Self:
        if not self.teacher.kind().present:
            raise ValueError(f"teacher.teacher.source: {self.teacher.source} is no teacher; choose another")
        terms = [term for term in self.terms.values() if term.weight > 0]
        if not any(lookup("loss", term.name, "teacher.terms").needs(term).teacher for term in terms):
            raise ValueError(
                "teacher.terms: none is against a teacher; give one, e.g. {kd: {name: kd}}, or choose source=train"
            )
        return self
