"""A network whose weights are the moving average of a student's, to be asked as a teacher (Mean Teacher: Tarvainen and
Valpola 2017, arXiv 1703.01780)."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from kdrun.data.views.view import View
from kdrun.models.network import kept_statistics
from kdrun.models.output import Output

N = TypeVar("N", bound=nn.Module)


class Averaged(nn.Module, Generic[N]):
    """Part of the checkpoint; nothing in it is trained. `follow` at the beginning of a step takes in what the optimizer
    made of the last one.

    Args:
        decay: share of the old weights that stays, at most: in step k (from 0) it is min(1 - 1 / (k + 1), decay), so
            that the first steps are not averaged with what nobody trained.
    """

    steps: Tensor
    """() float32, how often it followed."""

    def __init__(self, student: N, decay: float) -> None:
        super().__init__()
        self.network: N = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Parameters are averaged, buffers (batch statistics) are the student's."""
        share = (1 / (self.steps + 1)).clamp(min=1 - self.decay)
        own: list[Tensor] = list(self.network.parameters())
        live: list[Tensor] = list(student.parameters())
        moves = torch._foreach_sub(live, own)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(own, moves)
        for mine, other in zip(self.network.buffers(), student.buffers(), strict=True):
            mine.copy_(other)
        self.steps += 1

    @torch.no_grad()
    def forward(self, view: View, features: tuple[str, ...] = ()) -> Output:
        """By the statistics of the batch in training, as the authors' teachers; running ones stay."""
        with kept_statistics(self.network):
            out: Output = self.network(view, features)
        return out
