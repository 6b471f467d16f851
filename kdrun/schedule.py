"""Length of a run, optimizer settings, the learning rate and weights as functions of the step. Imports no torch.

A decay gives the factor on `schedule.lr` at each step; warm-up multiplies on top of it. Durations are given in steps or
in epochs of the labeled set (an epoch is N/B steps, which may be a fraction).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from kdrun.registry import register
from kdrun.schema import Schema


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


class Decay:
    """The factor on the base learning rate. Pure in the step, except for plateau, which keeps state."""

    Config: ClassVar[type[DecayConfig]]

    def __init__(self, config: Any, clock: Clock, warmup_steps: int) -> None:
        self.config = config
        self.clock = clock
        self.warmup_steps = warmup_steps

    def factor(self, step: int) -> float:
        """The factor at 0-based `step`, warm-up left out."""
        raise NotImplementedError

    def observe(self, value: float) -> None:
        """Takes in a validation score (higher is better) after an evaluation."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    def progress(self, step: int) -> float:
        """Share of the run behind us after warm-up, in [0, 1]."""
        return min(max(step - self.warmup_steps, 0) / max(self.clock.total_steps - self.warmup_steps, 1), 1.0)


@register("decay", "constant")
class Constant(Decay):
    class Config(DecayConfig):
        pass

    def factor(self, step: int) -> float:
        return 1.0


@register("decay", "step")
class StepDecay(Decay):
    """Multiplied by `gamma` at each milestone."""

    class Config(DecayConfig):
        milestones_steps: list[Annotated[int, Field(ge=0)]] | None = None
        milestones_epochs: list[Annotated[float, Field(ge=0)]] | None = None
        gamma: float = Field(0.1, gt=0, le=1)

        @model_validator(mode="after")
        def one_unit(self) -> Self:
            if (self.milestones_steps is None) == (self.milestones_epochs is None):
                raise ValueError("give milestones_steps or milestones_epochs, exactly one")
            return self

    def factor(self, step: int) -> float:
        if self.config.milestones_steps is not None:
            passed = sum(step >= m for m in self.config.milestones_steps)
        else:
            passed = sum(step >= round(m * self.clock.steps_per_epoch) for m in self.config.milestones_epochs)
        return float(self.config.gamma**passed)


@register("decay", "cosine")
class Cosine(Decay):
    """Half a cosine from 1 to `final`."""

    class Config(DecayConfig):
        final: float = Field(0.0, ge=0, le=1)

    def factor(self, step: int) -> float:
        final = self.config.final
        return float(final + (1 - final) * 0.5 * (1 + math.cos(math.pi * self.progress(step))))


@register("decay", "fixmatch")
class FixMatchCosine(Decay):
    """cos(7 pi k / 16 K): FixMatch (Sohn et al. 2020, arXiv 2001.07685), ends at 0.195 of the learning rate."""

    class Config(DecayConfig):
        pass

    def factor(self, step: int) -> float:
        return math.cos(7 * math.pi / 16 * self.progress(step))


@register("decay", "linear")
class Linear(Decay):
    """A straight line from 1 to `final`."""

    class Config(DecayConfig):
        final: float = Field(0.0, ge=0, le=1)

    def factor(self, step: int) -> float:
        return float(1 + (self.config.final - 1) * self.progress(step))


class Segment(Schema):
    until_steps: int | None = Field(None, gt=0)
    until_epochs: float | None = Field(None, gt=0)
    start: float = Field(ge=0)
    end: float = Field(ge=0)
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def one_unit(self) -> Self:
        if (self.until_steps is None) == (self.until_epochs is None):
            raise ValueError("give until_steps or until_epochs, exactly one")
        return self


@register("decay", "segments")
class Segments(Decay):
    """Pieces one after the other, each from `start` to `end` (factors on schedule.lr) until a step or epoch."""

    class Config(DecayConfig):
        segments: list[Segment] = Field(min_length=1)

        @model_validator(mode="after")
        def in_order(self) -> Self:
            for unit in ("until_steps", "until_epochs"):
                ends = [end for segment in self.segments if (end := getattr(segment, unit)) is not None]
                if any(b <= a for a, b in pairwise(ends)):
                    raise ValueError(f"segments must end one after the other, got {unit} {ends}")
            return self

    def factor(self, step: int) -> float:
        begin = 0
        for segment in self.config.segments:
            until = self.clock.steps(segment.until_steps, segment.until_epochs) or 0
            if step < until:
                share = (step - begin) / max(until - begin, 1)
                if segment.shape == "cosine":
                    share = 0.5 * (1 - math.cos(math.pi * share))
                return float(segment.start + (segment.end - segment.start) * share)
            begin = until
        return float(self.config.segments[-1].end)


@register("decay", "plateau")
class Plateau(Decay):
    """Multiplied by `gamma` at the evaluation after `patience` ones without a better validation top-1."""

    class Config(DecayConfig):
        gamma: float = Field(0.1, gt=0, lt=1)
        patience: int = Field(5, ge=0)
        min_factor: float = Field(1e-4, ge=0, le=1)
        threshold: float = Field(0.0, ge=0)

    def __init__(self, config: Any, clock: Clock, warmup_steps: int) -> None:
        super().__init__(config, clock, warmup_steps)
        self.state: dict[str, Any] = {"best": None, "bad": 0, "factor": 1.0}

    def factor(self, step: int) -> float:
        return float(self.state["factor"])

    def observe(self, value: float) -> None:
        state = self.state
        if state["best"] is None or value > state["best"] + self.config.threshold:
            state.update(best=value, bad=0)
            return
        state["bad"] += 1
        if state["bad"] > self.config.patience:
            state.update(factor=max(state["factor"] * self.config.gamma, self.config.min_factor), bad=0)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state.update(state)


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


class Ramps:
    """The factors in force on the weights that move, and what the adaptive ones have seen."""

    def __init__(self, ramps: Mapping[str, RampConfig]) -> None:
        self.ramps = ramps
        self.state: dict[str, Any] = {
            name: {"best": None, "bad": 0, "moves": 0} for name, ramp in ramps.items() if ramp.kind == "adaptive"
        }

    def factors(self, progress: float) -> dict[str, float]:
        """Factor by key, at the share `progress` of the run."""
        return {ramp.key: self._factor(name, ramp, progress) for name, ramp in self.ramps.items()}

    def _factor(self, name: str, ramp: RampConfig, progress: float) -> float:
        if ramp.kind == "adaptive":
            share = 1 - (1 - ramp.rate) ** int(self.state[name]["moves"])
        elif ramp.kind == "step":
            share = float(progress >= ramp.until_progress)
        else:
            span = ramp.until_progress - ramp.from_progress
            share = min(max((progress - ramp.from_progress) / span, 0.0), 1.0)
            if ramp.kind == "cosine":
                share = 0.5 * (1 - math.cos(math.pi * share))
        return ramp.start + (ramp.end - ramp.start) * share

    def observe(self, value: float) -> None:
        """Takes in a validation score (higher is better) after an evaluation."""
        for name, state in self.state.items():
            if state["best"] is None or value > state["best"]:
                state.update(best=value, bad=0)
                continue
            state["bad"] += 1
            if state["bad"] > self.ramps[name].patience:
                state.update(bad=0, moves=state["moves"] + 1)

    def state_dict(self) -> dict[str, Any]:
        return {name: dict(state) for name, state in self.state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, values in state.items():
            self.state[name].update(values)


class ScheduleConfig(Schema):
    """Everything about how long, with which optimizer and at which rates a network is trained."""

    steps: int | None = Field(None, gt=0)
    """Length in optimizer steps; this or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Length in passes over the labeled set."""
    batch_size: int = Field(64, gt=0)
    repeat_labeled: bool = True
    """Whether a labeled set smaller than a batch is repeated to fill it; false: batches are as small as it then."""
    """Labeled images a step."""
    optimizer: str = "sgd"
    """sgd (with `momentum` and `nesterov`), or any optimizer name of timm."""
    optimizer_args: dict[str, Any] = Field(default_factory=dict)
    """Passed on to the optimizer, e.g. {betas: [0.9, 0.999]}."""
    lr: float = Field(0.05, gt=0)
    lr_for: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Learning rates of certain students, by network name."""
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    weight_decay_on: Literal["kernels", "all"] = "all"
    """kernels: not on biases and normalisation parameters."""
    decay: SerializeAsAny[DecayConfig] = Field(default_factory=lambda: Constant.Config(name="constant"))
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
    channels_last: bool = True
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of networks and losses in training and evaluation; fp16 (with loss scaling) on cuda only."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Mode of torch.compile for the networks in training; evaluation stays eager. true means default."""
    fused: bool = False
    """One kernel for the whole optimizer step instead of one for each operation (foreach)."""

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
        return self

    @property
    def evaluates_more_than_once(self) -> bool:
        return self.eval_every_steps is not None or self.eval_every_epochs is not None

    def clock(self, num_labeled: int) -> Clock:
        """The clock of a run on `num_labeled` images."""
        steps_per_epoch = num_labeled / self.batch_size
        steps = self.steps if self.steps is not None else round((self.epochs or 0) * steps_per_epoch)
        return Clock(steps_per_epoch, max(steps, 1))


class LearningRate:
    """The learning-rate factor at a step: warm-up times decay."""

    def __init__(self, config: ScheduleConfig, clock: Clock) -> None:
        from kdrun.registry import lookup

        self.warmup_steps = clock.steps(config.warmup_steps, config.warmup_epochs) or 0
        self.warmup_from = config.warmup_from
        self.decay: Decay = lookup("decay", config.decay.name, "schedule.decay")(config.decay, clock, self.warmup_steps)

    def factor(self, step: int) -> float:
        """Factor on `schedule.lr` at 0-based `step`."""
        warmup = 1.0
        if step < self.warmup_steps:
            warmup = self.warmup_from + (1 - self.warmup_from) * step / self.warmup_steps
        return warmup * self.decay.factor(step)
