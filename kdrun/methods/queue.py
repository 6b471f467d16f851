"""A memory of the last rows that went through it: first in, first out."""

import torch
from torch import Tensor, nn

from kdrun.core.world import world


class Queue(nn.Module):
    """Tensors (size, ...) side by side, zeros at first. Over several ranks it takes in the rows of all of them.

    Args:
        shapes: name -> shape of a row.
    """

    place: Tensor
    """() int64, where the next row goes."""

    def __init__(self, size: int, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(size, *shape))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, **rows: Tensor) -> None:
        """The newest rows (B, ...) of each tensor, B at most `size`."""
        for name, values in rows.items():
            given = world().gathered(values.detach())
            at = (self.place + torch.arange(len(given), device=given.device)) % self.size
            self.get_buffer(name).index_copy_(0, at, given.to(self.get_buffer(name).dtype))
        self.place.copy_((self.place + len(given)) % self.size)
