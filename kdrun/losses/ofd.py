"""Overhaul of feature distillation: maps before ReLU, below 0 up to a margin (Heo et al. 2019, arXiv 1904.01866)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.before_relu import BeforeReluTerm
from kdrun.losses.features import TINY, same_size
from kdrun.losses.term import TermSpec

RARE = 0.001  # share of negative values up to which their mean is not looked at
FAR = 3.0  # standard deviations, the margin there


def margins(weight: Tensor, bias: Tensor) -> Tensor:
    """E[x | x < 0] of x ~ N(bias, weight^2), a batch normalization's output; -3 |weight| where x is hardly negative.

    Args:
        weight: (C,).
        bias: (C,).

    Returns:
        (C,) float64.
    """
    mean, deviation = bias.detach().double(), weight.detach().double().abs().clamp(min=TINY)
    share = torch.special.ndtr(-mean / deviation)
    density = torch.exp(-0.5 * (mean / deviation).square()) / math.sqrt(2 * math.pi)
    return torch.where(share > RARE, mean - deviation * density / share, -FAR * deviation)


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Sum of (s - t')^2, t' = max(t, margin), but of 0 where s <= t' <= 0 (partial L2).

    Args:
        student: (B, C, H, W), before ReLU, brought to the teacher's channels.
        teacher: (B, C, H', W'), before ReLU.
        margin: (C,), below 0.

    Returns:
        (B,).
    """
    student, teacher = same_size(student, teacher)
    target = teacher.maximum(margin.to(teacher.dtype)[:, None, None])
    counts = (student > target) | (teacher > 0)
    return (student - target).square().where(counts, 0).flatten(1).sum(1)


@register("loss", "ofd")
class OFD(BeforeReluTerm):
    """Maps before ReLU are the teacher's, as far as ReLU lets it be seen: `ofd`, summed over stages.

    The student's goes through a 1x1 convolution and batch normalization.
    """

    equation = (
        "sum over pairs k = 0 to n - 1 of features and teacher_features of 2^(k - n + 1) sum of (s - t')^2 where "
        "s > t' or t > 0, s = r_k(f_s), t' = max(t, E[x | x < 0]), x of the teacher's batch normalization, all before "
        "ReLU"
    )
    source = "Heo et al. 2019, arXiv 1904.01866"
    # deviates: the authors' code, and mdistiller's, have the teacher in training mode, so that its running statistics
    # drift; the paper says nothing of it. Ours is frozen in evaluation mode, because that is the function that was
    # trained, and of it the margins are.
    # deviates: the authors assume maps of one size; of two, ours pools the larger one.

    class Config(BeforeReluTerm.Config):
        pass

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.connectors = nn.ModuleList()
        for k, ((inputs, outputs), name) in enumerate(zip(self.widths, self.needed.of_teacher, strict=True)):
            if name not in spec.teacher_norms:
                raise ConfigError(
                    f"ofd needs the teacher's batch normalization before the last ReLU of a stage, and its {name} has "
                    "none of all channels; choose another teacher, e.g. teacher=resnet20, or other teacher_features"
                )
            self.register_buffer(f"margin{k + 1}", margins(*spec.teacher_norms[name]).float())
            convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs)))

    def of_stage(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        return ofd(self.connectors[k](student), teacher, self.get_buffer(f"margin{k + 1}"))
