"""The contract of a loss term, and the set of terms of one student."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError
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
    progress: float
    """Share of the run behind us, in [0, 1)."""
    draw: Callable[..., Tensor]
    """`draw(B, *shape)`: uniform numbers in [0, 1) that depend on (seed, step) only."""
    unmixed: UnmixedOutputs | None = None
    """Where a term asks for it."""


@dataclass(frozen=True)
class TermSpec:
    """What a term may need to know when it is built."""

    num_classes: int
    num_train: int
    student_dims: Mapping[str, int]
    teacher_dims: Mapping[str, int]
    train_target: Tensor
    """(N,) int64, -1 where the label is hidden from the run."""


class Term(nn.Module):
    """One loss term. A subclass has a `Config` and `forward`; it may own parameters and buffers."""

    Config: ClassVar[type[TermConfig]]
    equation: ClassVar[str] = ""
    """The term in the names of its `Config`; p are probabilities, z logits, y the label, s student, t teacher."""
    source: ClassVar[str] = ""
    """The paper and its arXiv id."""
    against: ClassVar[Literal["target", "teacher"]] = "target"
    """teacher: the term needs a teacher; it may read the labels too."""
    per_sample: ClassVar[bool] = True
    """True: `forward` returns (B,). False: a statistic of the batch, ()."""
    needs_index: ClassVar[bool] = False
    """True: the term remembers single images by their index; it is refused with views.mix."""
    needs_mix: ClassVar[bool] = False
    """True: the term is about mixed images; it is refused where none are mixed."""
    unmixed: Literal["student", "teacher"] | None = None
    """Whose logits on the images before they were mixed the term wants, as `Pair.unmixed`."""
    unmixed_gradient: bool = False
    """Whether its gradient flows through those of the student."""
    features: tuple[str, ...] = ()
    """Features that the student must give, and the teacher too where the term works against it."""
    teacher_features: tuple[str, ...] | None = None
    """Features that the teacher must give, where they have other names there."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__()
        self.config = config

    def forward(self, pair: Pair) -> Tensor:
        raise NotImplementedError

    def metrics(self, pair: Pair) -> dict[str, Tensor]:
        """Named scalars to log as `train/<label>/<name>`, without gradients and in every step the same names."""
        return {}

    def after_step(self, pair: Pair) -> None:
        """Called once after the optimizer step, without gradients (to update a memory)."""

    @classmethod
    def works_against(cls, config: Any) -> Literal["target", "teacher"]:
        """`against`, where a term's configuration has no say in it."""
        return cls.against

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        """What the weight means beside that of cross entropy (0 where there is none), for `kdrun explain`."""
        return []


def width(dims: Mapping[str, int], feature: str, role: str) -> int:
    """Channels of a feature. Where it is absent, raises ConfigError naming what the network of this role gives."""
    if feature not in dims:
        raise ConfigError(f"the {role} gives no {feature}; it gives {', '.join(dims) or 'none'}")
    return dims[feature]
