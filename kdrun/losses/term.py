"""The contract of a loss term; a page for authors is docs/extend/loss.md."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from kdrun.config.needs import Needs, refuse_gone
from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.models.output import Output


@dataclass(frozen=True)
class UnmixedOutputs:
    """What networks give for the images of a batch before they were mixed; image b's partner is partner[b]."""

    student: Output | None
    teacher: Output | None
    partner: Tensor
    """(B,) int64, places in the batch."""
    share: Tensor
    """(B,) float32, lambda: the image's own share."""


@dataclass(frozen=True)
class Pair:
    """A student's output beside what it is held against, for one batch."""

    student: Output
    teacher: Output | None
    target: Tensor | None
    """(B,) int64, or (B, classes) float32: the mixed classes of two images."""
    index: Tensor
    """(B,) int64, position in the train array; of a mixed image, that of the first."""
    progress: float | Tensor
    """Share of the run behind us, in [0, 1); () float64 in a captured step, see `risen`."""
    draw: Callable[..., Tensor]
    """`draw(B, *shape)`: uniform numbers in [0, 1) for the images of the pair, which depend on (seed, step) only."""
    unmixed: UnmixedOutputs | None = None
    """Where a term asks for it."""
    memo: dict[str, Tensor] = field(default_factory=dict)
    """What a term's `forward` leaves for its `metrics` and `after_step` of the same pair; each term has its own."""
    view: str = "weak"
    """Of the images: where a method shows its terms several, each in a pair of its own."""


@dataclass(frozen=True)
class TermSpec:
    """What a term may need to know when it is built."""

    num_classes: int
    num_train: int
    student_dims: Mapping[str, int]
    teacher_dims: Mapping[str, int]
    train_target: Tensor
    """(N,) int64, -1 where the label is hidden from the run."""
    teacher_classifier: Callable[[Tensor], Tensor] | None = None
    """The teacher's frozen linear layer, `prelogits` (B, D) -> logits (B, C), to send a gradient through; None: no such
    layer. A function, so that a term that keeps it neither trains nor saves it."""
    student_classifier: Callable[[Tensor], Tensor] | None = None
    """The student's, as it is trained; as above."""
    teacher_source: str = "none"
    """`teacher.source`, for messages."""
    student_reductions: Mapping[str, int] = field(default_factory=dict)
    """Stage -> side of the image over that of its map; without stages where that is not known."""
    teacher_reductions: Mapping[str, int] = field(default_factory=dict)
    teacher_norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """`pre1` and so on -> weight and bias (C,) of the teacher's batch normalization before it, where it has one."""


Statistic = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(features (M, D), logits (M, C), target (M,) int64, -1 where the label is hidden) -> a tensor; on the CPU. A function
of a module: its name is part of what the artifact is called by."""


class TeacherStatistics(Protocol):
    """What the frozen teacher says of the train images as an evaluation shows them, made once for all runs."""

    def __call__(self, statistic: Statistic, feature: str | None = None, everything: bool = False) -> Tensor:
        """`statistic` of the labeled images in the order of the train array.

        Args:
            feature: of the teacher, (M, D); None: its logits.
            everything: of the unlabeled images, too.
        """


class Term(nn.Module):
    """One loss term. A subclass has a `Config` and `forward`; it may own parameters and buffers."""

    Config: ClassVar[type[TermConfig]]
    equation: ClassVar[str] = ""
    """The term in the names of its `Config`; p are probabilities, z logits, y the label, s student, t teacher."""
    source: ClassVar[str] = ""
    """The paper and its arXiv id."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_gone(cls, _GONE, "docs/extend/loss.md")

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__()
        self.config = config
        self.needed = self.needs(config)
        """What it asks of its networks: `needs`, and what the term found among their features."""

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """What the term asks of the run, as far as its configuration tells."""
        return Needs()

    def before(self, teacher: TeacherStatistics) -> None:
        """Called once before the first step of a run with a teacher, to fill buffers; a checkpoint has them."""

    def forward(self, pair: Pair) -> Tensor:
        """(B,), or () of a statistic of the batch; without the weight."""
        raise NotImplementedError

    def metrics(self, pair: Pair) -> dict[str, Tensor]:
        """Named scalars to log as `train/<label>/<name>`, the same in every step; of several pairs the mean counts."""
        return {}

    def after_step(self, pair: Pair) -> None:
        """Called after the optimizer step for each pair that `forward` saw in it, in that order, without gradients."""

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        """What the weight means beside that of cross entropy (0 where there is none), for `kdrun explain`."""
        return []


def teacher_of(pair: Pair, term: Term) -> Output:
    """What the teacher gave for a pair. Raises KdrunError where nobody asked it."""
    if pair.teacher is None:
        raise KdrunError(f"loss.{term.config.name} needs a teacher, and the method gave none")
    return pair.teacher


def factor(value: float | Tensor) -> float | Tensor:
    """A number that multiplies losses: of a captured step's () float64 the float32 that a float counts as there."""
    return value.float() if isinstance(value, Tensor) else value


def risen(
    progress: float | Tensor, share: float, shape: Literal["linear", "exponential", "cosine"] = "linear"
) -> float | Tensor:
    """A factor that rises to 1 in this share of the run; 1 where the share is 0.

    With t = min(progress / share, 1) it is t, exp(-5 (1 - t)^2) or (1 - cos(pi t)) / 2.
    """
    if not share:
        return 1.0
    t = progress / share
    t = t.clamp(max=1.0) if isinstance(t, Tensor) else min(t, 1.0)
    by: Any = torch if isinstance(t, Tensor) else math
    if shape == "exponential":
        t = by.exp(-5 * (1 - t) ** 2)
    elif shape == "cosine":
        t = 0.5 * (1 - by.cos(math.pi * t))
    return factor(t)


def width(dims: Mapping[str, int], feature: str, role: str) -> int:
    """Channels of a feature. Where it is absent, raises ConfigError naming what the network of this role gives."""
    if feature not in dims:
        raise ConfigError(f"the {role} gives no {feature}; it gives {', '.join(dims) or 'none'}")
    return dims[feature]


_GONE = {
    "against": "needs, Needs(teacher=True)",
    "works_against": "needs, Needs(teacher=...)",
    "per_sample": "needs, Needs(per_sample=False)",
    "needs_index": "needs, Needs(index=True)",
    "needs_mix": "needs, Needs(mixed=True)",
    "unmixed": "needs, Needs(unmixed=...)",
    "unmixed_gradient": "needs, Needs(unmixed_gradient=True)",
    "features": "needs, Needs(features=...)",
    "teacher_features": "needs, Needs(teacher_features=...)",
}
