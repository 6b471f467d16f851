"""Distribution alignment (Berthelot et al. 2020, ReMixMatch, arXiv 1911.09785): predictions whose mean is as it should
be. p * (t + 1e-6) / (m + 1e-6), renormalised; m is a moving mean of predictions, t what it should be."""

from typing import Literal

import torch
from torch import Tensor, nn

from kdrun.core.world import world

TINY = 1e-6


def aligned(p: Tensor, mean: Tensor, target: Tensor) -> Tensor:
    """(B, C) probabilities.

    Args:
        p: (B, C) probabilities.
        mean: (C,), what they are on average.
        target: (C,), what they should be.
    """
    scaled = p * ((target + TINY) / (mean + TINY)).to(p.dtype)
    return scaled / scaled.sum(1, keepdim=True)


class MovingMean(nn.Module):
    """The mean of probabilities, or of other rows, over the last steps; over several ranks that of all their rows.

    Args:
        size: C.
        kind: ema: m <- decay m + (1 - decay) batch mean; window: the plain mean of the last `window` batch means.
        start: what it holds at first: uniform (each slot of a window, too); first: the first batch's mean; zero; or a
            number.
    """

    mean: Tensor
    """(C,) of kind ema, (window, C) of kind window."""
    count: Tensor
    """() int64, batches seen."""

    def __init__(
        self, size: int, kind: Literal["ema", "window"] = "ema", decay: float = 0.999, window: int = 128,
        start: Literal["uniform", "first", "zero"] | float = "uniform",
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.decay, self.start = kind, decay, start
        shape = (size,) if kind == "ema" else (window, size)
        named = 0.0 if start == "zero" else 1 / size
        self.register_buffer("mean", torch.full(shape, named if isinstance(start, str) else start))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, p: Tensor) -> Tensor:
        """Take in (B, C) probabilities; the mean then, (C,)."""
        batch = world().mean(p.detach().to(self.mean.dtype).mean(0))
        if self.kind == "ema":
            moved = torch.lerp(batch, self.mean, self.decay)
            self.mean.copy_(torch.where(self.count == 0, batch, moved) if self.start == "first" else moved)
        else:
            if self.start == "first":
                self.mean.copy_(torch.where(self.count == 0, batch, self.mean))
            self.mean.index_copy_(0, (self.count % len(self.mean))[None], batch[None])
        self.count += 1
        return self.value

    @property
    def value(self) -> Tensor:
        """(C,)."""
        return self.mean.clone() if self.kind == "ema" else self.mean.mean(0)
