"""The typed configuration of one run, the checks across its groups, and the key that names its directory.

Hydra composes plain nodes; `to_config` turns them into a `RunConfig`. The run key is the hash of every field that can
change a result, so that equal runs are found and never run twice.
"""

import re
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from kdrun.config.dataset import DatasetConfig
from kdrun.config.model import ModelConfig
from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig, TermConfig, TrackerConfig
from kdrun.config.schedule import Clock, RampConfig, ScheduleConfig
from kdrun.config.teacher import NetworkConfig, TeacherConfig
from kdrun.config.views import ViewsConfig
from kdrun.core.registry import lookup
from kdrun.core.schema import OutsideKey, Schema


class EvaluateConfig(Schema):
    """What else is measured once a run is done. It changes no result, so a finished run can be measured later."""

    corruptions: str | None = Field(None, min_length=1)
    """A folder as CIFAR-10-C or CIFAR-100-C, of the dataset's test images; null: none."""
    sets: list[Literal["imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"]] = Field(default_factory=list)
    """Other test sets, of networks that were trained on ImageNet or on some of its classes."""
    root: str = Field("data", min_length=1)
    """What holds the folders of `sets`, called as their authors' archives."""


class DebugConfig(Schema):
    """What a run leaves out that looks for mistakes (conf/experiment/debug). Its figures are no results: the code it
    was made with is part of its run key, so that it is made again once that has changed."""

    steps: int | None = Field(None, gt=0)
    """Steps of this run at most, and of each run that it needs first."""
    images: int | None = Field(None, gt=0)
    """Validation, test and unlabeled images at most, of each, spread over all that there are."""
    repeat_batch: bool = False
    """Each step has the batch of the first, its views too, at a constant learning rate, without weight decay and moving
    average; runs that are needed first are made as ever."""

    @property
    def on(self) -> bool:
        return self != DebugConfig()

    def fewer(self, index: Any) -> Any:
        """Of an array or a tensor of positions, so many as `images` allows, the first among them."""
        return index if self.images is None else index[:: max(-(-len(index) // self.images), 1)]


class ExecutionConfig(Schema):
    """How and where a run is carried out; nothing here can change its result beyond rounding."""

    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, cuda:<n> or mps."""
    devices: int | None = Field(None, gt=0)
    """Processes that the recipe was made with, a device each; null: any number. A run of another number says so: its
    batch is the same."""
    threads: Annotated[int, Field(gt=0, le=4096)] | Literal["auto"] | None = "auto"
    """Threads of torch on the CPU; auto: as many of its slot's as the networks gain by, one where they are small; null:
    all of its slot's, which are torch's own choice where one run at a time is made. A run that goes on keeps its
    number."""
    workers: Annotated[int, Field(ge=0, le=4096)] | Literal["auto"] = "auto"
    """Processes that decode streamed images ahead of the training; 0: none, the run does it itself; auto: a core each
    but one, at most 16."""
    outputs: str = Field("outputs", min_length=1)
    progress: bool | None = None
    """How far training and other long jobs are: null: a bar on a terminal, elsewhere a line for each evaluation and
    each minute; true: a bar in any case; false: neither. log.txt has the lines in any case."""
    eval_batch_size: int = Field(1000, gt=0)
    log_every_steps: int = Field(50, gt=0)
    checkpoint_every_seconds: float = Field(300, gt=0)
    checkpoint_every_steps: int | None = Field(None, gt=0)
    profile_steps: int | None = Field(None, gt=0)
    """Steps that torch's profiler looks at, behind the first ones: trace.json in the run's folder, for chrome://tracing
    and Perfetto, and the operations that take longest in its log."""
    join_seconds: float = Field(30, gt=0)
    """In which the processes of one run must have found each other (torchrun, srun)."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint of a finished run."""
    keep_teacher_evaluation: bool = True
    """Compute a teacher's logits of the validation and test images once, for all its students
    (outputs/artifacts/teacher_evaluation); false: each run asks it anew. The figures are the same in either case."""

    keep_command: bool = True
    """Keep what a command line came to, so that it is told at once where its runs are all done (`kdrun.cli.known`);
    false: it is planned each time."""

    @field_validator("device")
    @classmethod
    def is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError(f"{value!r} is not a device; allowed: auto, cpu, cuda, cuda:<n>, mps")
        return value


class RunConfig(Schema):
    """One run, wholly specified."""

    method: SerializeAsAny[MethodConfig]
    dataset: SerializeAsAny[DatasetConfig]
    views: ViewsConfig
    teacher: SerializeAsAny[TeacherConfig]
    students: list[ModelConfig]
    losses: dict[str, SerializeAsAny[TermConfig]]
    schedule: ScheduleConfig
    seed: int = Field(0, ge=0)
    tracker: Annotated[SerializeAsAny[TrackerConfig], OutsideKey()]
    execution: Annotated[ExecutionConfig, OutsideKey()]
    evaluate: Annotated[EvaluateConfig, OutsideKey()] = Field(default_factory=EvaluateConfig)
    plugins: Annotated[list[str], OutsideKey()] = Field(default_factory=list)
    ramps: dict[str, RampConfig] = Field(default_factory=dict)
    """Weights that move during training."""
    debug: DebugConfig = Field(default_factory=DebugConfig)
    written: Annotated[dict[str, str], OutsideKey()] = Field(default_factory=dict, exclude=True)
    """What the environment said (`kdrun.config.environment`) -> the text that asked for it, which alone is written: by
    dotted key in `execution` and `tracker`; elsewhere, where a path moves between keys, by `=` and the value."""

    @property
    def networks(self) -> list[tuple[str, ModelConfig]]:
        """Students, and the networks of timm in the teacher, with the key of each."""
        several = len(self.students) > 1
        out = [(f"students.{k}" if several else "student", model) for k, model in enumerate(self.students)]
        parts = self.teacher.parts().items()
        return out + [(f"{key}.model", part.model) for key, part in parts if isinstance(part, NetworkConfig)]

    @property
    def weights(self) -> dict[str, float]:
        """All weights above 0 by key: `loss.<term>.weight`, and `method.<name>_weight` of what the method adds."""
        out = {f"loss.{label}.weight": term.weight for label, term in self.losses.items()}
        own = {name: getattr(self.method, name) for name in type(self.method).model_fields if name.endswith("_weight")}
        out |= {f"method.{name}": value for name, value in own.items() if isinstance(value, float)}
        return {key: value for key, value in out.items() if value > 0}

    @property
    def method_class(self) -> Any:
        """The registered method class."""
        return lookup("method", self.method.name, "method.name")

    @property
    def term_needs(self) -> dict[str, Needs]:
        """What each loss term asks of the run, by label."""
        terms = self.losses.items()
        return {label: lookup("loss", term.name, f"loss.{label}.name").needs(term) for label, term in terms}

    @property
    def needs(self) -> Needs:
        """What the method and its loss terms ask of the run together."""
        own: Needs = self.method_class.needs(self)
        return reduce(or_, self.term_needs.values(), own)

    @property
    def sides(self) -> set[str]:
        """What the loss terms work against: target, teacher."""
        return {needs.side for needs in self.term_needs.values()}

    @property
    def needs_teacher(self) -> bool:
        """Whether the method or one of the loss terms asks a teacher."""
        return self.needs.teacher

    def clock(self, num_labeled: int) -> Clock:
        """The clock of a run on `num_labeled` images."""
        clock, most = self.schedule.clock(num_labeled), self.debug.steps
        return clock if most is None else replace(clock, total_steps=min(clock.total_steps, most))

    @property
    def split_seed(self) -> int:
        """Seed of the labeled draw."""
        return self.seed if self.dataset.split_seed is None else self.dataset.split_seed
