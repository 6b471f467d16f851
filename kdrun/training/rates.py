"""What moves with the steps: the learning rate and the weights under `ramps`."""

import math
from collections.abc import Mapping
from typing import Any

from kdrun.config.schedule import Clock, RampConfig, ScheduleConfig
from kdrun.core.registry import lookup
from kdrun.training.decay import Decay


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


class LearningRate:
    """The learning-rate factor at a step: warm-up times decay."""

    def __init__(self, config: ScheduleConfig, clock: Clock) -> None:
        self.warmup_steps = clock.steps(config.warmup_steps, config.warmup_epochs) or 0
        self.warmup_from = config.warmup_from
        self.decay: Decay = lookup("decay", config.decay.name, "schedule.decay")(config.decay, clock, self.warmup_steps)

    def factor(self, step: int) -> float:
        """Factor on `schedule.lr` at 0-based `step`."""
        warmup = 1.0
        if step < self.warmup_steps:
            warmup = self.warmup_from + (1 - self.warmup_from) * step / self.warmup_steps
        return warmup * self.decay.factor(step)
