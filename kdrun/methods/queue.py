"""A memory of the last rows that went through it: first in, first out."""

import torch
from torch import Tensor, nn

from kdrun.core.errors import KdrunError
from kdrun.core.world import world


class Queue(nn.Module):
    """Tensors (size, ...) side by side, zeros at first. Over several ranks it takes in the rows of all of them.

    Args:
        shapes: name -> shape of a row.
    """

    taken: Tensor
    """() int64, rows that it took in."""

    def __init__(self, size: int, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(size, *shape))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, **rows: Tensor) -> None:
        """The newest rows (B, ...) of each tensor, of all ranks together at most `size`."""
        count = 0
        for name, values in rows.items():
            memory, given = self.get_buffer(name), world().gathered(values.detach())
            count = len(given)
            if count > self.size:  # rows of one push would lie on one another, in no order
                raise KdrunError(f"a queue of {self.size} rows cannot take in {count} at once")
            at = (self.taken + torch.arange(count, device=given.device)) % self.size
            memory.index_copy_(0, at, given.to(memory.dtype))
        self.taken += count

    @property
    def full(self) -> Tensor:
        """() bool, whether every row was written."""
        return self.taken >= self.size
