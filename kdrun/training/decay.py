"""Length of a run, optimizer settings, the learning rate and weights as functions of the step. Imports no torch.

A decay gives the factor on `schedule.lr` at each step; warm-up multiplies on top of it. Durations are given in steps or
in epochs of the labeled set (an epoch is N/B steps, which may be a fraction, or rounded up by schedule.epoch=ceil).
"""

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdrun.config.schedule import Clock, ConstantConfig, DecayConfig
from kdrun.core.registry import register
from kdrun.core.schema import Schema


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
    Config = ConstantConfig

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


@register("decay", "arc")
class Arc(Decay):
    """cos(arccos(final) t): from 1 to `final`, ever faster."""

    class Config(DecayConfig):
        final: float = Field(0.25, ge=0, le=1)

    def factor(self, step: int) -> float:
        return math.cos(math.acos(self.config.final) * self.progress(step))


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
