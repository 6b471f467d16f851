"""ReviewKD: the student's stages, fused from the last to the first, against the teacher's (Chen et al. 2021)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.before_relu import before_relu
from kdrun.losses.features import StagesTerm
from kdrun.losses.labels import full
from kdrun.losses.term import Pair, TermSpec, risen, width

SIDES = (4, 2, 1)  # of the pooled maps


def hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of squares at full size and of maps pooled to sides 4, 2 and 1, each of half the weight of the one before.

    A side that is not below the map's is left out; the sum is divided by the sum of the weights in use (HCL of Chen et
    al. 2021, arXiv 2104.09044).

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).

    Returns:
        (B,).
    """
    student, teacher = full(student), full(teacher.detach())
    sides = [side for side in SIDES if side < min(student.shape[2:])]
    value, weights = _squares(student, teacher), [0.5 ** (k + 1) for k in range(len(sides))]
    for side, weight in zip(sides, weights, strict=True):
        one, other = (F.adaptive_avg_pool2d(x, side) for x in (student, teacher))
        value = value + weight * _squares(one, other)
    return value / (1 + sum(weights))


def _squares(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().flatten(1).mean(1)


class Fusion(nn.Module):
    """One level: its map and that of the level above it, each by a learned share at each position (the paper's ABF).

    Args:
        inputs: channels of the student's map.
        middle: channels in which levels are fused.
        outputs: channels of the teacher's map.
        top: nothing is above it.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, top: bool) -> None:
        super().__init__()
        inward = nn.Conv2d(inputs, middle, 1, bias=False)
        outward = nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
        for layer in (inward, outward):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        self.reduce = nn.Sequential(inward, nn.BatchNorm2d(middle))
        self.shares = None if top else nn.Conv2d(2 * middle, 2, 1)
        self.expand = nn.Sequential(outward, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, above: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """A map with the teacher's channels, and the fused one for the level below; both of `size`."""
        x = self.reduce(x)
        if self.shares is not None and above is not None:
            above = _resized(above, x.shape[2:])
            shares = self.shares(torch.cat([x, above], 1)).sigmoid()
            x = shares[:, :1] * x + shares[:, 1:] * above
        x = _resized(x, size)
        return self.expand(x), x


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")


@register("loss", "reviewkd")
class ReviewKD(StagesTerm):
    """Each stage learns with what later ones know; the input of the classifier is the top level: `hierarchical`."""

    equation = (
        "min(progress / warmup, 1) sum over levels of (mse + sum_k 2^-k mse of maps pooled to sides 4, 2, 1) / sum of "
        "the weights, of features fused from the last to the first in middle channels, and teacher_features, with "
        "targets=pre before the last ReLU"
    )
    source = "Chen et al. 2021, arXiv 2104.09044"
    # deviates: the authors raise the weight once an epoch, by 1/20 from the first; we at each step, as for dkd.

    class Config(StagesTerm.Config):
        middle: int = Field(512, gt=0)
        """Channels in which levels are fused, at most; fewer where the student's classifier has fewer inputs."""
        targets: Literal["pre", "post"] = "post"
        """The teacher's maps: pre: before the activation that ends a stage (of wide ResNets behind the next batch
        normalization), the authors'; post: the stages as the network gives them (of wide ResNets the sums)."""
        warmup: float = Field(20 / 240, ge=0, lt=1)
        """Share of the run in which the weight rises from 0: the paper's 20 epochs of 240."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.needed = replace(
            self.needed,
            features=(*self.needed.features, "prelogits"),
            teacher_features=(*self.needed.of_teacher, "prelogits"),
        )
        top = width(spec.student_dims, "prelogits", "student"), width(spec.teacher_dims, "prelogits", "teacher")
        middle = min(config.middle, top[0])
        self.levels = nn.ModuleList(
            Fusion(inputs, middle, outputs, top=k == len(self.widths))
            for k, (inputs, outputs) in enumerate([*self.widths, top])
        )

    def place(self, stage: str, dims: Mapping[str, int], role: str) -> str:
        name = stage if role == "student" or self.config.targets == "post" else before_relu(stage)
        if name != stage and stage in dims and name not in dims:
            raise ConfigError(
                f"the teacher gives no {name}, its {stage} before the last ReLU, and targets is pre; set it to post: "
                "loss.reviewkd.targets=post"
            )
        return name

    def forward(self, pair: Pair) -> Tensor:
        return risen(pair.progress, self.config.warmup) * super().forward(pair)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        values, above = [], None
        for level, mine, other in zip(reversed(self.levels), reversed(student), reversed(teacher), strict=True):
            mine, other = (x[:, :, None, None] if x.ndim == 2 else x for x in (mine, other))
            found, above = level(mine, above, other.shape[2:])
            values.append(hierarchical(found, other))
        return torch.stack(values).sum(0)
