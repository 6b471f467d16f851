"""Wasserstein distance of features as Gaussians (WKD-F: Lv, Yang and Li 2024, arXiv 2412.08139)."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import same_size
from kdrun.losses.labels import full
from kdrun.losses.stage import StageTerm
from kdrun.losses.term import TermSpec

EPS = 1e-5  # of the authors' code, in the variances


def wkd_feature(student: Tensor, teacher: Tensor, mean_weight: float, grid: int) -> Tensor:
    """Mean over the grid of mean_weight |m_s - m_t|^2 + |d_s - d_t|^2, m the means of channels and d their deviations.

    With mean_weight 1 this is the squared distance between two Gaussians without correlations.

    Args:
        student: (B, C, H, W), with the teacher's channels.
        teacher: (B, C, H', W').
        grid: parts of each side.

    Returns:
        (B,).
    """
    (m_s, d_s), (m_t, d_t) = moments(full(student), grid), moments(full(teacher.detach()), grid)
    squares = mean_weight * (m_s - m_t).square() + (d_s - d_t).square()
    return squares.flatten(1).sum(1) / grid**2


def moments(feature: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean, and sqrt(variance + 1e-5) with the unbiased variance, of each part of the map. (B, C, H, W) -> twice
    (B, C, grid^2). Raises ConfigError where a part is one position."""
    parts = [
        feature[:, :, top:bottom, left:right].flatten(2)
        for top, bottom in _edges(feature.shape[2], grid)
        for left, right in _edges(feature.shape[3], grid)
    ]
    if min(part.shape[2] for part in parts) < 2:
        raise ConfigError(
            f"loss.wkd_feature.grid: {grid} leaves one position of a map of {feature.shape[2]}x{feature.shape[3]} in a "
            "part, which has no variance; give a smaller grid, or upscale=2 where the student's map is the smaller one"
        )
    means = torch.stack([part.mean(2) for part in parts], 2)
    return means, (torch.stack([part.var(2) for part in parts], 2) + EPS).sqrt()


def _edges(side: int, grid: int) -> list[tuple[int, int]]:
    """As adaptive pooling has them."""
    return [(k * side // grid, -(-(k + 1) * side // grid)) for k in range(grid)]


@register("loss", "wkd_feature")
class WKDFeature(StageTerm):
    """Parts of a map are Gaussians near the teacher's: `wkd_feature`; the student's map goes through a convolution,
    batch normalization and ReLU."""

    equation = (
        "mean over grid x grid parts of mean_weight sum_c (m_s,c - m_t,c)^2 + sum_c (d_s,c - d_t,c)^2, m mean and d "
        "deviation of a channel of r(f_s), f_s at feature, and of f_t at teacher_feature; r learned, with upscale"
    )
    source = "Lv, Yang and Li 2024, arXiv 2412.08139"
    # deviates: where the student's map is the larger one the authors' projector has a strided convolution, we pool,
    # because that fits any two sizes.

    class Config(StageTerm.Config):
        mean_weight: float = Field(4.0, ge=0)
        """The paper's mean-covariance ratio."""
        grid: int = Field(1, gt=0)
        """Parts of each side of the map."""
        upscale: Literal[1, 2] = 1
        """2: the projector doubles the sides of the student's map by a transposed convolution, as the authors' does
        where the teacher's map is twice as large."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        inputs, outputs = self.widths
        doubled = config.upscale == 2
        self.projector = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
            if doubled
            else nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        mine, other = same_size(self.projector(student[0]), teacher[0])
        return wkd_feature(mine, other, self.config.mean_weight, self.config.grid)
