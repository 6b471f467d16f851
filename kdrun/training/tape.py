"""The numbers that the host gives to a captured step: recorded as a first step asks for them, then made for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from kdrun.core.device import send
from kdrun.core.errors import ConfigError
from kdrun.core.seeding import generator
from kdrun.methods.step import Context
from kdrun.training.waiting import let_wait


@dataclass(frozen=True)
class Told:
    """What a step is told."""

    progress: Tensor
    """() float64, see `Pair.progress`."""
    factors: dict[str, Tensor]
    """() float64 each, see `Context.factors`."""
    draws: list[list[Tensor]]
    """Uniform numbers, in the order of calls, for each beginning (`Context.again`)."""
    conditions: list[Tensor]
    """() bool each, see `Context.holds`."""


class Tape:
    """What a step asks of the host beside its images, in the order in which it asks.

    Args:
        name: of the method, for messages.
    """

    def __init__(self, seed: int, total_steps: int, device: torch.device, name: str) -> None:
        self.name = name
        self.device = device
        self._seed = seed
        self._total_steps = total_steps
        self._shapes: list[list[tuple[int, ...]]] = []
        self._conditions: list[Callable[[int], bool]] = []
        self._begun = self._asked = 0  # beginnings, and conditions, so far in the step at hand
        self._recording: tuple[int, list[Generator]] | None = None  # the step, and a generator for each beginning

    def told(self, step: int, factors: Mapping[str, float]) -> Told:
        """For a 0-based step, on the CPU; the numbers are those of `Context`."""
        draws = []
        for shapes in self._shapes:
            source = generator(self._seed, "step", step)
            draws.append([torch.rand(shape, generator=source) for shape in shapes])
        return Told(
            torch.tensor(step / self._total_steps, dtype=torch.float64),
            {name: torch.tensor(value, dtype=torch.float64) for name, value in factors.items()},
            draws, [torch.tensor(condition(step)) for condition in self._conditions],
        )  # fmt: skip

    def context(self, told: Told, recorded: int | None = None) -> "TapedContext":
        """Where a step asks.

        Args:
            told: on the device.
            recorded: a first step, of which it is kept what it asks for; it is told so then.
        """
        self._begun = self._asked = 0
        self._recording = None if recorded is None else (recorded, [])
        return TapedContext(self, told)

    def begin(self, told: Told) -> int:
        """A beginning: numbers are drawn from the first one on."""
        number, self._begun = self._begun, self._begun + 1
        if self._recording is not None:
            step, generators = self._recording
            generators.append(generator(self._seed, "step", step))
            self._shapes.append([])
            told.draws.append([])
        if number >= len(told.draws):
            raise self._changed()
        return number

    def draw(self, told: Told, beginning: int, place: int, shape: tuple[int, ...]) -> Tensor:
        known = told.draws[beginning]
        if self._recording is not None:
            self._shapes[beginning].append(shape)
            with let_wait():
                known.append(send(torch.rand(shape, generator=self._recording[1][beginning]), self.device))
        if place >= len(known) or known[place].shape != shape:
            raise self._changed()
        return known[place]

    def holds(self, told: Told, condition: Callable[[int], bool]) -> Tensor:
        place, self._asked = self._asked, self._asked + 1
        if self._recording is not None:
            self._conditions.append(condition)
            told.conditions.append(torch.full((), condition(self._recording[0]), device=self.device))
        if place >= len(told.conditions):
            raise self._changed()
        return told.conditions[place]

    def refusal(self, what: str) -> ConfigError:
        return ConfigError(f"schedule.graph: method={self.name} {what}; set it to false")

    def _changed(self) -> ConfigError:
        return self.refusal("draws other numbers than in its first step, and a captured step is always the same")


class TapedContext(Context):
    """A step that is captured, or would be: it knows no numbers but those that it is told, on the device."""

    def __init__(self, tape: Tape, told: Told) -> None:
        self.factors = told.factors
        self.progress = told.progress
        self.device = tape.device
        self._tape = tape
        self._told = told
        self._beginning = tape.begin(told)
        self._place = 0

    @property
    def step(self) -> int:
        raise self._tape.refusal("asks for the number of the step (Context.step), which only the host knows")

    def again(self) -> "TapedContext":
        return TapedContext(self._tape, self._told)

    def holds(self, condition: Callable[[int], bool]) -> Tensor:
        return self._tape.holds(self._told, condition)

    def subseed(self, purpose: str) -> int:
        raise self._tape.refusal("asks for a seed in each step (Context.subseed), which only the host has")

    def draw(self, *shape: int) -> Tensor:
        place, self._place = self._place, self._place + 1
        return self._tape.draw(self._told, self._beginning, place, shape)
