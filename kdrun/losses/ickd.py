"""ICKD-C: how the channels of a map correlate (Liu et al. 2021, arXiv 2202.03680)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.core.registry import register
from kdrun.losses.features import TINY
from kdrun.losses.labels import full
from kdrun.losses.stage import StageTerm
from kdrun.losses.term import TermSpec


def ickd(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over pairs of channels of (g_s - g_t)^2, divided by C; g = F F^T, each row of length 1.

    Args:
        student: (B, C, H, W), brought to the teacher's channels.
        teacher: (B, C, H', W').

    Returns:
        (B,).
    """
    apart = _correlations(full(student)) - _correlations(full(teacher.detach()))
    return apart.square().sum(2).mean(1)


def _correlations(feature: Tensor) -> Tensor:
    channels = feature.flatten(2)
    return F.normalize(channels @ channels.mT, dim=2, eps=TINY)


@register("loss", "ickd")
class ICKD(StageTerm):
    """Channels correlate as the teacher's do: `ickd` of one stage, the student's behind a convolution and a norm."""

    equation = (
        "1/C sum over pairs of channels of (g_s - g_t)^2, g = F F^T with rows of length 1, F the map at feature and "
        "teacher_feature over positions, the student's behind a learned convolution"
    )
    source = "Liu et al. 2021, arXiv 2202.03680"
    # deviates: the authors build a second embedding, for the teacher, which they never use; we build none.

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        inputs, outputs = self.widths
        self.embedding = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return ickd(self.embedding(student[0]), teacher[0])
