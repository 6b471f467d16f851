"""The flow of solution procedure: how a stage's input and output go together (Yim et al. 2017, CVPR)."""

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import StagesTerm, smaller
from kdrun.losses.labels import full
from kdrun.losses.term import TermSpec

Map = Annotated[str, Field(pattern=r"^(stem|stage[1-9][0-9]*)$")]


def flow(before: Tensor, after: Tensor) -> Tensor:
    """Mean over positions of a_i b_j, the larger map pooled to the smaller.

    Args:
        before: (B, C, H, W).
        after: (B, C', H', W').

    Returns:
        (B, C', C).
    """
    before, after = (x.flatten(2) for x in smaller(full(before), full(after)))
    return after @ before.mT / before.shape[2]


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over channels i and j of (flow_s - flow_t)^2.

    Args:
        student: two successive maps.
        teacher: two of as many channels.

    Returns:
        (B,).
    """
    return (flow(*student) - flow(*teacher).detach()).square().flatten(1).mean(1)


@register("loss", "fsp")
class FSP(StagesTerm):
    """Maps change from stage to stage as the teacher's do: `fsp`, summed over successive maps of as many channels."""

    equation = (
        "sum over successive maps of features (and of teacher_features) of mean (G_s - G_t)^2, G_ij = mean over "
        "positions of a_i b_j"
    )
    source = "Yim et al. 2017, CVPR; as in Tian et al. 2020, arXiv 1910.10699"
    most: ClassVar[float] = math.inf

    class Config(StagesTerm.Config):
        features: list[Map] | None = Field(None, min_length=2)
        """The student's maps, e.g. [stem, stage1, stage2]; null: what goes into the first stage, where both networks
        tell, and the stages, the last ones of each, as many as both have."""
        teacher_features: list[Map] | None = Field(None, min_length=2)
        """The teacher's, held against `features` one by one; null: those of the same names."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        for (mine, other), (s, t) in zip(self.pairs, self.widths, strict=True):
            if s != t:
                raise ConfigError(
                    f"fsp needs as many channels in both networks, and the student's {mine} has {s}, the teacher's "
                    f"{other} {t}; choose another pair, or another loss"
                )
        if len(self.pairs) < 2:
            raise ConfigError("fsp is about successive maps, and the networks give one; choose another loss")

    def maps(self, spec: TermSpec) -> tuple[list[str], list[str]]:
        student, teacher = super().maps(spec)
        both = "stem" in spec.student_dims and "stem" in spec.teacher_dims
        return (["stem", *student], ["stem", *teacher]) if both else (student, teacher)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        values = [fsp(s, t) for s, t in zip(pairwise(student), pairwise(teacher), strict=True)]
        return torch.stack(values).sum(0)
