"""CC: correlation congruence of the embeddings of a batch (Peng et al. 2019, arXiv 1904.01802)."""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.parts import TermConfig
from kdrun.core.registry import register
from kdrun.losses.features import TINY, StatisticTerm
from kdrun.losses.labels import full
from kdrun.losses.term import TermSpec


def congruence(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Mean over pairs of (k_s - k_t)^2, k = sum_{p <= order} e^(-2 gamma) (2 gamma)^p / p! cos(f_i, f_j)^p.

    That is exp(-gamma |f_i - f_j|^2) of features of length 1, its Taylor series in their product cut off.

    Args:
        student: (B, D).
        teacher: (B, D').

    Returns:
        ().
    """
    one, other = (_kernel(full(feature), gamma, order) for feature in (student, teacher.detach()))
    return (one - other).square().mean()


def _kernel(feature: Tensor, gamma: float, order: int) -> Tensor:
    feature = F.normalize(feature, eps=TINY)
    cosines, shares = feature @ feature.mT, [(2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack([share * cosines**p for p, share in enumerate(shares)]).sum(0)


def consecutive(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over i of <d_i, d_i+1>, d = |f_s - f_t|: 0 of one image.

    Args:
        student: (B, D), embedded.
        teacher: (B, D), embedded; a gradient flows to it.

    Returns:
        ().
    """
    apart = (full(student) - full(teacher)).abs()
    return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)


@register("loss", "cc")
class CC(StatisticTerm):
    """Pairs of images are as alike to the student as to the teacher, by a kernel: `congruence`.

    Published CIFAR-100 figures come from the other form, `consecutive` of learned embeddings. That is no kernel: it
    falls with the distance of an image's two embeddings, both of which it trains, and depends on the order of a batch.
    """

    equation = (
        "form paper: mean over pairs of (k_s - k_t)^2, k = sum_{p <= order} e^(-2 gamma) (2 gamma)^p / p! cos^p; form "
        "code: mean over i of <d_i, d_i+1>, d = |e_s(f_s) - e_t(f_t)|, e learned, of embedding_dim"
    )
    source = "Peng et al. 2019, arXiv 1904.01802; code: the authors', in Tian et al. 2020, arXiv 1910.10699"

    class Config(TermConfig):
        form: Literal["paper", "code"] = "paper"
        gamma: float = Field(0.4, gt=0)
        """Of paper: of the Gaussian kernel."""
        order: int = Field(2, gt=0)
        """Of paper: P, the last power of the series."""
        embedding_dim: int = Field(128, gt=0)
        """Of code: outputs of the two linear embeddings."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        if config.form == "code":
            self.student_embedding = nn.Linear(self.student_dim, config.embedding_dim)
            self.teacher_embedding = nn.Linear(self.teacher_dim, config.embedding_dim)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        (mine,), (other,) = student, teacher
        if self.config.form == "code":
            return consecutive(self.student_embedding(mine), self.teacher_embedding(other))
        return congruence(mine, other, self.config.gamma, self.config.order)
