"""Information-theoretic representation distillation (Miles, Lopez-Rodriguez and Mikolajczyk 2022, arXiv 2112.00459).

Two statistics of a batch of penultimate features, in float32 whatever comes in (float64 stays), gradients to the
student only, in the form of the code of TTM (arXiv 2402.11148), whose table this term is for.
"""

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.parts import TermConfig
from kdrun.core.registry import register
from kdrun.losses.features import TINY, StatisticTerm
from kdrun.losses.labels import full
from kdrun.losses.term import TermSpec


def correlation_loss(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """log2 sum_k |c_k - 1|^(2 alpha), c_k the correlation of dimension k over the batch (arXiv 2112.00459, L_corr).

    As in the authors' code, c_k is the mean over the batch of products of values standardized with the unbiased
    deviation: (B - 1) / B times Pearson's, so that the sum is above 0. It is 0 where a dimension is constant.

    Args:
        student: (B, D), embedded to the teacher's width.
        teacher: (B, D).
        alpha: order of the entropy, above 0.

    Returns:
        ().
    """
    student, teacher = full(student), full(teacher.detach())
    s, t = (F.normalize(x - x.mean(0), dim=0, eps=TINY) for x in (student, teacher))
    c = (s * t).sum(0) * (len(s) - 1) / len(s)
    return (1 - c).pow(2 * alpha).sum().log2()


def mutual_information_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """sum (G_s^2 - G_st^2): negative information of order 2, without its logarithms (arXiv 2112.00459, L_mi).

    G_s and G_t are the Gram matrices of the L2-normalized rows, G_st their elementwise product; G_s and G_st are
    divided by their traces.

    Args:
        student: (B, D).
        teacher: (B, D').

    Returns:
        ().
    """
    # deviates: the paper takes log2 of both sums, we do not, because the code that made TTM's table does not.
    s, t = F.normalize(full(student), eps=TINY), F.normalize(full(teacher.detach()), eps=TINY)
    own = s @ s.mT
    joint = own * (t @ t.mT)
    own, joint = (g / g.trace().clamp(min=TINY) for g in (own, joint))
    return (own.square() - joint.square()).sum()


@register("loss", "itrd")
class ITRD(StatisticTerm):
    """Embeddings correlate and share information: `correlation_loss` and `mutual_information_loss`, weighted.

    The linear embedding to the teacher's width always stands before the correlation, before the mutual information only
    where the widths differ.
    """

    equation = (
        "correlation_weight log2 sum_k |c_k - 1|^(2 alpha) + mutual_information_weight sum (G_s^2 - G_st^2), c_k the "
        "correlation of dimension k over the batch, G Gram matrices of unit rows"
    )
    source = "Miles et al. 2022, arXiv 2112.00459, as in the code of arXiv 2402.11148"

    class Config(TermConfig):
        correlation_weight: float = Field(2.0, ge=0)
        """b_corr."""
        mutual_information_weight: float = Field(1.0, ge=0)
        """b_mi."""
        alpha: float = Field(1.01, gt=0)
        """alpha_it: 1.01 for networks of one architecture, 1.5 for two."""

        @model_validator(mode="after")
        def consistent(self) -> Self:
            if not self.correlation_weight and not self.mutual_information_weight:
                raise ValueError("correlation_weight and mutual_information_weight are both 0")
            return self

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.resize = self.student_dim != self.teacher_dim
        if config.correlation_weight or self.resize:
            self.embedding = nn.Linear(self.student_dim, self.teacher_dim)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        config, mine, other = self.config, student[0], teacher[0]
        embedded = self.embedding(mine) if config.correlation_weight or self.resize else mine
        total = mine.new_zeros(())
        if config.correlation_weight:
            total = total + config.correlation_weight * correlation_loss(embedded, other, config.alpha)
        if config.mutual_information_weight:
            information = mutual_information_loss(embedded if self.resize else mine, other)
            total = total + config.mutual_information_weight * information
        return torch.as_tensor(total)
