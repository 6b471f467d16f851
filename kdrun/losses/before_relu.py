"""What losses between stages before their last activation have in common."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kdrun.losses.features import StagesTerm


def before_relu(stage: str) -> str:
    """The name of what goes into the activation that ends a stage."""
    return stage.replace("stage", "pre")


class BeforeReluTerm(StagesTerm):
    """The sum of a loss over pairs of stages before their last activation, each of half the weight of the next one."""

    def place(self, stage: str, dims: Mapping[str, int], role: str) -> str:
        return before_relu(stage)

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        last = len(student) - 1
        pairs = enumerate(zip(student, teacher, strict=True))
        values = [2.0 ** (k - last) * self.of_stage(k, s, t) for k, (s, t) in pairs]
        return torch.stack(values).sum(0)
