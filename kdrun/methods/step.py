"""What goes into a step and comes out of it: Setup, Context, Step, Guesses."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from kdrun.core.device import send
from kdrun.core.seeding import generator, subseed
from kdrun.core.world import Part
from kdrun.models.factory import NetworkFactory
from kdrun.teachers.teacher import Teacher


@dataclass(frozen=True)
class Guesses:
    """Labels that a method gave to unlabeled images. The loop holds them against the hidden ones, for the log only."""

    index: Tensor
    """(B,) int64, positions in the train array."""
    label: Tensor
    """(B,) int64."""
    used: Tensor
    """(B,) bool, whether the step learned from it."""


@dataclass(frozen=True)
class Step:
    """What a method returns for a batch."""

    losses: dict[str, Tensor]
    """Named scalars, weighted already; their sum is minimised. Keys: `<term>` or `<net>/<term>`."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Named scalars to log, detached."""
    guesses: Guesses | None = None


class Context:
    """Where in the run a step stands, and its random numbers.

    In a step that is captured (`schedule.graph`) numbers of the host are () tensors that it refills before each step.

    Args:
        part: of the batch that the step is asked about; what is drawn is drawn for all parts.
    """

    part = Part()
    goes_on = False
    """Whether the step has begun with an earlier part of this batch."""

    def __init__(
        self, seed: int, step: int, total_steps: int, device: torch.device,
        factors: Mapping[str, float | Tensor] | None = None, part: Part = part,
    ) -> None:  # fmt: skip
        self.part = part
        self.factors = factors or {}
        """Factors on the weights that move (`ramps`), by their keys."""
        self._step = step
        self.progress: float | Tensor = step / total_steps
        self.device = device
        self._seed = seed
        self._generator: Generator | None = None

    @property
    def step(self) -> int:
        """0-based; known to the host alone, so a step that asks for it cannot be captured."""
        return self._step

    def again(self) -> "Context":
        """The same step with its numbers unused: what one student draws does not depend on the others."""
        ctx = copy.copy(self)
        ctx._generator = None
        return ctx

    def within(self, index: int, count: int) -> "Context":
        """The same step with its numbers unused, for the index-th of `count` parts of its part."""
        ctx = self.again()
        ctx.part, ctx.goes_on = self.part.part(index, count), index > 0
        return ctx

    def holds(self, condition: Callable[[int], bool]) -> bool | Tensor:
        """Whether something is so in this 0-based step; () bool in a captured step, to choose by `chosen`."""
        return condition(self.step)

    def subseed(self, purpose: str) -> int:
        """A seed for one purpose in this step, and in this part of its batch."""
        part = self.part
        return subseed(self._seed, purpose, self.step, *((part.index, part.count) if part.count > 1 else ()))

    def draw(self, count: int, *shape: int) -> Tensor:
        """(count, *shape) uniform numbers in [0, 1) on the training device, for so many images of this part; they
        depend on (seed, step) and the order of calls only."""
        if self._generator is None:
            self._generator = generator(self._seed, "step", self.step)
        drawn = torch.rand((count * self.part.count, *shape), generator=self._generator)
        return send(drawn[self.part.rows(len(drawn))], self.device)


def chosen(where: bool | Tensor, one: Callable[[], Tensor], other: Callable[[], Tensor]) -> Tensor:
    """`one()` where it holds, else `other()`; in a captured step, which cannot branch, both are computed."""
    if isinstance(where, Tensor):
        return torch.where(where, one(), other())
    return one() if where else other()


@dataclass(frozen=True, kw_only=True)
class Setup(NetworkFactory):
    """What a method is built from, beside its configuration."""

    train_target: Tensor
    """(N,) int64, -1 where the label is hidden from the run."""
    num_unlabeled: int = 0
    """Images of the unlabeled pool, which mostly has the labeled ones, too, and not those for validation."""
    teacher: Teacher | None = None
    restoring: bool = False
    """A finished run is opened again: what only its training needs is left out, and weights follow."""
