"""KD-SVD: leading singular vectors of the maps, from stage to stage (Lee et al. 2018, arXiv 1807.06819)."""

from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import StagesTerm
from kdrun.losses.labels import full
from kdrun.losses.term import TermSpec

SPARE = 3  # vectors of the student beyond the teacher's, among which each of the teacher's finds its like
NEAR = 1e-4  # of the largest squared singular value: what lies nearer together gives less gradient, none if equal


class RightVectors(torch.autograd.Function):
    """The first right singular vectors of matrices, (B, N, C) -> (B, C, count), with a gradient that is always finite.

    It has 1 / (gap of squared singular values), here gap / (gap^2 + e^2), e = `NEAR` times the largest of them.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, count: int) -> Tensor:
        _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
        ctx.save_for_backward(matrix, values.square(), vectors.mT)
        ctx.count = count
        first: Tensor = vectors.mT[..., :count]
        return first

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        matrix, squares, vectors = ctx.saved_tensors
        (gradient,), first = gradients, vectors[..., : ctx.count]
        near = (NEAR * squares[..., None, :1]).clamp(min=1e-12)
        with full_precision(matrix):

            def inverse(gap: Tensor) -> Tensor:
                found: Tensor = gap / (gap.square() + near.square())
                return found

            within = vectors.mT @ gradient
            outside = gradient - vectors @ within  # where the matrix has nothing: its squared singular values are 0
            own = squares[..., None, : ctx.count]
            turn = vectors @ (inverse(own - squares[..., None]) * within) + inverse(own) * outside
            return matrix @ (turn @ first.mT + first @ turn.mT), None


def directions(student: Tensor, teacher: Tensor, vectors: int) -> tuple[Tensor, Tensor]:
    """The teacher's first right singular vectors over channels, and the student's that are most like them.

    A singular vector has no sign: of the teacher's the largest number is positive, the student's point as the
    teacher's do, and one at a right angle is 0. Both have the length of the teacher's singular values, together 1.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H', W').

    Returns:
        student, teacher: each (B, C, vectors).
    """
    mine = RightVectors.apply(full(student).flatten(2).mT, vectors + SPARE)
    _, values, other = torch.linalg.svd(full(teacher.detach()).flatten(2).mT, full_matrices=False)
    other, values = other.mT[..., :vectors], F.normalize(values[:, None, :vectors], dim=2)
    other = other * other.gather(1, other.abs().argmax(1, keepdim=True)).sign()
    cosines = mine.detach().mT @ other
    best = cosines.abs().argmax(1, keepdim=True)  # (B, 1, vectors)
    mine = mine.gather(2, best.expand(-1, mine.shape[1], -1)) * cosines.gather(1, best).sign()
    return mine * values, other * values


def kdsvd(student: list[Tensor], teacher: list[Tensor], vectors: int = 1) -> Tensor:
    """Sum over successive stages, vectors and pairs of channels of (r_s - r_t)^2, r = exp(-(v_a - v_b)^2 / 8).

    v are the numbers of `directions`, a a channel of a stage and b one of the stage before. Needs memory for B * C * C'
    numbers for each pair of stages.

    Args:
        student: two or more, (B, C, H, W) each.
        teacher: as many, of the same channels.

    Returns:
        (B,).
    """
    found = [directions(one, other, vectors) for one, other in zip(student, teacher, strict=True)]
    apart = [
        (_radial(mine, mine_before) - _radial(other, other_before)).square().sum((1, 2, 3))
        for (mine_before, other_before), (mine, other) in pairwise(found)
    ]
    return torch.stack(apart).sum(0)


def _radial(one: Tensor, other: Tensor) -> Tensor:
    return (-(one[:, :, None] - other[:, None]).square() / 8).exp()


@register("loss", "kdsvd")
class KDSVD(StagesTerm):
    """The main direction of the maps turns from stage to stage as the teacher's does: `kdsvd`.

    A singular value decomposition makes the host wait, so its step cannot be captured.
    """

    equation = (
        "sum over successive features and teacher_features, and pairs of their channels, of (r_s - r_t)^2, r = "
        "exp(-(v_a - v_b)^2 / 8), v the first right singular vectors of the maps, in the teacher's signs and lengths"
    )
    source = "Lee et al. 2018, arXiv 1807.06819; form: Tian et al. 2020, arXiv 1910.10699"
    # deviates: the sign of a singular vector is chance, and the value depends on it; of the teacher's vectors the
    # largest number is positive here. Behind a ReLU that is the sign of all numbers of the first.
    # deviates: the paper's code takes half the sum, multiplies the maps by the root of the number of vectors and does
    # not divide by the batch; no figure of it is for CIFAR-100 with the networks here.

    class Config(StagesTerm.Config):
        vectors: int = Field(1, gt=0)
        """k: vectors of each stage."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        if len(self.widths) < 2:
            raise ConfigError("kdsvd goes from stage to stage and has one here; give features two or more")
        for name, (mine, other) in zip(self.needed.features, self.widths, strict=True):
            if mine != other:
                raise ConfigError(
                    f"kdsvd needs as many channels of both networks, and {name} has {mine} of the student beside "
                    f"{other} of the teacher; choose another student, or another loss"
                )
            self._allows(name, mine)

    def _allows(self, name: str, most: int) -> None:
        if self.config.vectors > most:
            raise ConfigError(f"vectors: {self.config.vectors}, and {name} has {most}; give fewer")

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        for name, mine, other in zip(self.needed.features, student, teacher, strict=True):
            self._allows(name, min(feature[0, 0].numel() for feature in (mine, other)))
        return kdsvd(student, teacher, self.config.vectors)
