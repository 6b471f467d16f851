"""The recipe of a run: length, batch size, optimizer, learning rate, evaluations; weights that move."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from kdrun.core.errors import ConfigError
from kdrun.core.schema import OutsideKey, Schema

MOST_STEPS = 10**9  # at a thousand steps a second, 12 days


@dataclass(frozen=True)
class Clock:
    """Translates between steps and epochs of one run."""

    steps_per_epoch: float
    total_steps: int

    def steps(self, steps: int | None, epochs: float | None) -> int | None:
        """The duration in steps; None when neither is given."""
        if steps is not None:
            return steps
        return None if epochs is None else round(epochs * self.steps_per_epoch)


class DecayConfig(Schema):
    name: str


class ConstantConfig(DecayConfig):
    """The default: the rate stays as it is."""


class RampConfig(Schema):
    """How one weight moves: a factor on it that goes from `start` to `end`."""

    key: str
    """`loss.<term>.weight`, or `method.<name>_weight`."""
    kind: Literal["linear", "cosine", "step", "adaptive"] = "linear"
    """step: from one to the other at `until_progress`. adaptive: a step of `rate` of the way that is left, at each
    evaluation after `patience` ones without a better validation top-1 (the mean over the students)."""
    start: float = Field(1.0, ge=0)
    end: float = Field(1.0, ge=0)
    from_progress: float = Field(0.0, ge=0, le=1)
    """Share of the run at which it begins to move; linear and cosine."""
    until_progress: float = Field(1.0, ge=0, le=1)
    """Share of the run from which on it has arrived; linear, cosine and step."""
    patience: int = Field(0, ge=0)
    rate: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.kind in ("linear", "cosine") and self.from_progress >= self.until_progress:
            raise ValueError(f"until_progress must be above from_progress, got {self.until_progress:g}")
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start:g}; nothing would move")
        return self


class ScheduleConfig(Schema):
    """Everything about how long, with which optimizer and at which rates a network is trained."""

    steps: int | None = Field(None, gt=0, le=MOST_STEPS)
    """Length in optimizer steps; this or `epochs`."""
    epochs: float | None = Field(None, gt=0, le=MOST_STEPS)
    """Length in passes over the labeled set."""
    batch_size: int = Field(64, gt=0)
    """Labeled images a step."""
    accumulate: int = Field(1, gt=0)
    """Parts in which a step's batch goes through the networks, one after the other, to take less memory. The result is
    that of the whole batch, but for batch normalisation, which takes its statistics of each part."""
    epoch: Literal["exact", "ceil"] = "exact"
    """Steps in a pass over the labeled set: exact: N/B, which may be a fraction; ceil: rounded up to whole batches, as
    a loader of PyTorch counts that drops none."""
    last_batch: Literal["full", "small"] = "full"
    """The last labeled batch of a pass: full: filled up from the next pass; small: what is left of the set, so that
    each `epoch` of ceil is a pass. Unlabeled batches stay whole."""
    repeat_labeled: bool = True
    """Whether a labeled set smaller than a batch is repeated to fill it; false: batches, those of unlabeled images too,
    are as small as it then. With last_batch=small it is not repeated in either case."""
    optimizer: str = "sgd"
    """sgd (with `momentum` and `nesterov`), dot (sgd with a momentum for the labels and one for the teacher, `momentum`
    -/+ the `delta` in its arguments, 0.075), or any optimizer name of timm."""
    optimizer_args: dict[str, Any] = Field(default_factory=dict)
    """Passed on to the optimizer, e.g. {betas: [0.9, 0.999]}."""
    lr: float = Field(0.05, gt=0)
    lr_for: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Learning rates of certain students, by network name."""
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    weight_decay_on: Literal["kernels", "timm", "all"] = "all"
    """kernels: not on biases and normalisation parameters; timm: nor on what a network's own `no_weight_decay()` names,
    such as the position embedding of a transformer."""
    decay: SerializeAsAny[DecayConfig] = Field(default_factory=lambda: ConstantConfig(name="constant"))
    warmup_steps: int | None = Field(None, ge=0)
    warmup_epochs: float | None = Field(None, ge=0)
    warmup_from: float = Field(0.0, ge=0, le=1)
    """Factor on the learning rate at the first step of the warm-up."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of each student's gradient."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of the exponential moving average of the weights; null: none."""
    eval_every_steps: int | None = Field(None, gt=0)
    eval_every_epochs: float | None = Field(None, gt=0)
    """Evaluation cadence; neither: at the end only."""
    batch_norm: Annotated[Literal["global", "local"], OutsideKey()] = "global"
    """Over several processes: global: batch normalisation takes its statistics of the whole batch, as in one process;
    local: of each process's own images. It stands in the record."""
    channels_last: bool = True
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of networks and losses in training and evaluation; fp16 (with loss scaling) on cuda only."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Mode of torch.compile for the networks in training; evaluation stays eager. true means default."""
    fused: bool = False
    """One kernel for the whole optimizer step instead of one for each operation (foreach)."""
    graph: bool = False
    """Each step, from the views to the optimizer, as one CUDA graph; brings `fused`; for sgd, adam and adamw."""

    @field_validator("compile", mode="before")
    @classmethod
    def flag(cls, value: Any) -> Any:
        return {True: "default", False: None}.get(value, value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give schedule.steps or schedule.epochs, exactly one (set the other to null)")
        for name in ("warmup", "eval_every"):
            if getattr(self, f"{name}_steps") is not None and getattr(self, f"{name}_epochs") is not None:
                raise ValueError(f"give schedule.{name}_steps or schedule.{name}_epochs, not both")
        twice = {"lr", "weight_decay", "momentum", "nesterov", "fused"} & set(self.optimizer_args)
        if twice:
            raise ValueError(f"schedule.optimizer_args: {min(twice)} belongs to schedule.{min(twice)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("schedule.nesterov needs schedule.momentum > 0")
        if self.last_batch == "small" and self.epoch == "exact":
            raise ValueError("schedule.last_batch: small batches end a pass of whole steps; set schedule.epoch to ceil")
        if self.graph and self.accumulate > 1:
            raise ValueError("schedule.accumulate: a captured step takes its batch in one; set schedule.graph to false")
        if self.graph and self.precision == "fp16":
            raise ValueError("schedule.graph: the loss scaling of fp16 waits for the device; set precision to bf16")
        if self.graph and self.compile not in (None, "default"):
            raise ValueError(f"schedule.graph: compile={self.compile} has graphs of its own; set it to default or null")
        return self

    @property
    def evaluates_more_than_once(self) -> bool:
        return self.eval_every_steps is not None or self.eval_every_epochs is not None

    def evaluates_after(self, done: int, clock: Clock) -> bool:
        """Whether networks are evaluated after so many steps."""
        if done == clock.total_steps:
            return True
        if self.eval_every_steps is not None:
            return done % self.eval_every_steps == 0
        if self.eval_every_epochs is not None:
            period = self.eval_every_epochs * clock.steps_per_epoch
            return math.floor((done + 0.5) / period) > math.floor((done - 0.5) / period)
        return False

    def evaluations(self, clock: Clock, done: int = 0) -> int:
        """How often a run evaluates its networks after its first `done` steps."""
        every, last = self.eval_every_steps, clock.total_steps - 1
        if done > last:
            return 0
        if every is None and self.eval_every_epochs is not None:
            period = max(self.eval_every_epochs * clock.steps_per_epoch, 1.0)
            return math.floor((last + 0.5) / period) - math.floor((done + 0.5) / period) + 1
        return 1 if every is None else last // every - done // every + 1

    def labeled_sizes(self, num_labeled: int, batch_size: int) -> list[int]:
        """The sizes of labeled batches that a run on `num_labeled` images meets, the usual one first.

        Args:
            batch_size: of whole ones.
        """
        if self.last_batch == "full":
            return [batch_size]
        rest = num_labeled % batch_size
        return [batch_size] * (num_labeled >= batch_size) + [rest] * (rest > 0)

    def clock(self, num_labeled: int) -> Clock:
        """The clock of a run on `num_labeled` images."""
        steps_per_epoch = num_labeled / self.batch_size
        if self.epoch == "ceil":
            steps_per_epoch = float(math.ceil(steps_per_epoch))
        steps = self.steps if self.steps is not None else round((self.epochs or 0) * steps_per_epoch)
        if steps > MOST_STEPS:
            raise ConfigError(
                f"schedule.epochs: {self.epochs:g} are {steps:.3g} steps; a run has at most {MOST_STEPS:.0e}"
            )
        return Clock(steps_per_epoch, max(steps, 1))
