"""Losses between the student's and the teacher's logits: KD, TTM and WTTM.

Per sample, in float32 whatever comes in (float64 stays), finite for logits up to 1e4, gradients to the student only.
z are logits, p = softmax(z), t the teacher, s the student.
"""

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config import TermConfig
from kdrun.errors import KdrunError
from kdrun.losses.labels import full
from kdrun.losses.term import Pair, Term
from kdrun.registry import register


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.

    Returns:
        (B,).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    student, teacher = full(student_logits), full(teacher_logits.detach())
    return temperature**2 * _kl(teacher / temperature, student / temperature)


def ttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """KL(p_t^gamma / sum p_t^gamma || p_s): temperature 1/gamma on the teacher only (arXiv 2402.11148, eq. of TTM).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        gamma: exponent of the power transform, 1/T, above 0.

    Returns:
        (B,).
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    return _kl(gamma * full(teacher_logits.detach()), full(student_logits))


def power_sum(teacher_logits: Tensor, gamma: float) -> Tensor:
    """U_gamma(p_t) = sum_j p_t,j^gamma, from 1 (certain) to C^(1 - gamma) (uniform), for gamma <= 1. (B, C) -> (B,)."""
    return (gamma * full(teacher_logits.detach()).log_softmax(1)).logsumexp(1).exp()


def wttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """U_gamma(p_t) * TTM: samples on which the teacher is unsure count more (arXiv 2402.11148, eq. of WTTM).

    Shapes as in `ttm`. The authors' code takes the plain mean over the batch, without dividing by the sum of U.
    """
    return power_sum(teacher_logits, gamma) * ttm(student_logits, teacher_logits, gamma)


def _kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target_logits) || softmax(logits)) per row."""
    return F.kl_div(logits.log_softmax(1), target_logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def _logits(pair: Pair, term: Term) -> tuple[Tensor, Tensor]:
    if pair.teacher is None:
        raise KdrunError(f"loss.{term.config.name} needs a teacher, and the method gave none")
    return pair.student.logits, pair.teacher.logits


@register("loss", "kd")
class KD(Term):
    """`kd` as a term."""

    against = "teacher"

    class Config(TermConfig):
        temperature: float = Field(4.0, gt=0)

    def forward(self, pair: Pair) -> Tensor:
        return kd(*_logits(pair, self), self.config.temperature)


@register("loss", "ttm")
class TTM(Term):
    """`ttm` as a term."""

    against = "teacher"

    class Config(TermConfig):
        gamma: float = Field(0.1, gt=0, le=1)

    def forward(self, pair: Pair) -> Tensor:
        return ttm(*_logits(pair, self), self.config.gamma)


@register("loss", "wttm")
class WTTM(Term):
    """`wttm` as a term."""

    against = "teacher"

    class Config(TermConfig):
        gamma: float = Field(0.1, gt=0, le=1)

    def forward(self, pair: Pair) -> Tensor:
        return wttm(*_logits(pair, self), self.config.gamma)
