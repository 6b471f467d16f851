"""SP: which images of a batch are like which (Tung and Mori 2019, arXiv 1907.09682)."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.core.registry import register
from kdrun.losses.features import TINY
from kdrun.losses.labels import full
from kdrun.losses.stage import StageTerm


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over pairs of (g_s - g_t)^2, g[i, j] = <f_i, f_j> / (sum_k <f_i, f_k>^2)^(1/2).

    Args:
        student: (B, ...), as many numbers for each image as it has.
        teacher: (B, ...), likewise; another number of them.

    Returns:
        ().
    """
    return (_similarities(full(student)) - _similarities(full(teacher.detach()))).square().mean()


def _similarities(feature: Tensor) -> Tensor:
    feature = feature.flatten(1)
    return F.normalize(feature @ feature.mT, eps=TINY)


@register("loss", "sp")
class SP(StageTerm):
    """Images are as alike to the student as to the teacher: `sp` of the maps of one stage, whole."""

    equation = (
        "mean over pairs of (g_s - g_t)^2, g the products of an image's map, at feature and teacher_feature, with "
        "those of all images, over the norm of that row"
    )
    source = "Tung and Mori 2019, arXiv 1907.09682; weight: the paper's and Tian et al. 2020, arXiv 1910.10699"

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return replace(super().needs(config), over_ranks="gathered", per_sample=False)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return sp(student[0], teacher[0])
