"""How predictions on weak views become labels: what FixMatch and its like differ in."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdrun.methods.step import Setup


@dataclass(frozen=True)
class Seen:
    """What a network says of the images of a step, without gradient."""

    p: Tensor
    """(B, C) probabilities of weak views of unlabeled images."""
    index: Tensor
    """(B,) int64 of these, positions in the train array."""
    known: Tensor
    """(L, C) logits of weak views of labeled images."""
    target: Tensor
    """(L,) int64, their labels."""
    progress: float | Tensor
    """Share of the run behind us, in [0, 1)."""


class Labeler(nn.Module):
    """Which labels, and how much each of them counts. State that changes is in buffers, which `forward` moves first or
    last as the paper has it; over several ranks it gathers what is no mean over images (`gathers`)."""

    gathers: ClassVar[bool] = False
    """Whether it looks at the batch as a whole, so that over several ranks it gathers by itself."""

    def __init__(self, spec: Any, setup: Setup) -> None:
        """
        Args:
            spec: `method` of the configuration.
        """
        super().__init__()
        self.spec = spec

    @torch.no_grad()
    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Label, (B,) int64 or (B, C) probabilities, and weight (B,) float32 in [0, 1] of each unlabeled image."""
        confidence, label = seen.p.max(1)
        return label, (confidence >= self.spec.threshold).float()

    def penalty(self, strong: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Weighted scalars to add to the loss.

        Args:
            strong: (B, C) logits of strong views of the same images.
            weight: (B,), what `forward` gave.
        """
        return {}

    def metrics(self) -> dict[str, Tensor]:
        """Named scalars of its state to log, detached."""
        return {}
