"""Feature distillation between transformers (ViTKD: Yang et al. 2022, arXiv 2209.02432).

Patch tokens without class tokens; sums over tokens and channels, as in the authors' code, on which its weights count.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import FeatureTerm
from kdrun.losses.labels import full
from kdrun.losses.term import Pair, TermSpec, width

LOW = ("stage1", "stage2")
HIGH = "tokens"


def mimicking(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of (f_s - f_t)^2. (B, ...), (B, ...) -> (B,)."""
    return (full(student) - full(teacher.detach())).square().flatten(1).sum(1)


def masked(uniform: Tensor, share: float) -> Tensor:
    """Which tokens are masked: all but int(N (1 - share)) of each image.

    Args:
        uniform: (B, N) numbers in [0, 1); the smallest are kept.

    Returns:
        (B, N) bool.
    """
    return uniform.argsort(1).argsort(1) >= int(uniform.shape[1] * (1 - share))


@register("loss", "vitkd")
class ViTKD(FeatureTerm):
    """The student mimics the first two blocks and generates masked tokens of the last one."""

    equation = (
        "alpha sum_(k=1,2) |a_k(f_s,k) - f_t,k|^2 + beta / mask_ratio |m (g(a(h_s) or a learned token) - h_t)|^2, f_k "
        "the tokens behind block k, h those behind the last norm, m a random mask of the share mask_ratio, a linear "
        "where the widths differ, g two 3x3 convolutions on the grid"
    )
    source = "Yang et al. 2022, arXiv 2209.02432"

    class Config(TermConfig):
        alpha: float = Field(3e-5, ge=0)
        """Weight of mimicking."""
        beta: float = Field(3e-6, gt=0)
        """Weight of generation."""
        mask_ratio: float = Field(0.5, gt=0, le=1)
        """Share of the tokens that are masked, the paper's lambda."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        widths = [
            (width(spec.student_dims, name, "student"), width(spec.teacher_dims, name, "teacher"))
            for name in (HIGH, *LOW)
        ]
        self.align, *low = (nn.Linear(s, t) if s != t else nn.Identity() for s, t in widths)
        self.align_low = nn.ModuleList(low)
        outputs = widths[0][1]
        self.mask_token = nn.Parameter(torch.zeros(outputs))
        self.generation = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, features=(*LOW, HIGH), over_ranks="mean")

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = self.given(pair)
        for mine, other in zip(student, teacher, strict=True):
            if mine.shape[2:] != other.shape[2:]:
                grids = (f"{h}x{w}" for h, w in (mine.shape[2:], other.shape[2:]))
                raise ConfigError(
                    f"loss.vitkd: the student has {' tokens, the teacher '.join(grids)}; give both as many patches, "
                    "see student.size and teacher.model.size"
                )
        with full_precision(student[0]):
            (*low_s, high_s), (*low_t, high_t) = student, teacher
            low = [
                mimicking(_over_channels(align, s), t) for align, s, t in zip(self.align_low, low_s, low_t, strict=True)
            ]
            c = self.config
            high = self._generated(high_s, high_t, pair)
            return torch.as_tensor(c.alpha * torch.stack(low).sum(0) + c.beta / c.mask_ratio * high)

    def _generated(self, student: Tensor, teacher: Tensor, pair: Pair) -> Tensor:
        x = _over_channels(self.align, student)
        batch, _, height, breadth = x.shape
        mask = masked(pair.draw(batch, height * breadth), self.config.mask_ratio).view(batch, 1, height, breadth)
        made = self.generation(torch.where(mask, self.mask_token[:, None, None], x))
        return mimicking(made * mask, teacher * mask)


def _over_channels(module: nn.Module, feature: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C', H, W)."""
    return torch.as_tensor(module(feature.movedim(1, -1))).movedim(-1, 1)
