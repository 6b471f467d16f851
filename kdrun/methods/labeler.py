"""How predictions on weak views become labels: what FixMatch and its like differ in."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdrun.core.world import world
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
    strong: Tensor | None = None
    """(B, C) logits of strong views of the unlabeled images; None where others than the labeled student label them."""


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

    def of_labeled(self, seen: Seen) -> Tensor | None:
        """How much the loss of each labeled image counts in their mean, (L,); None: all alike."""
        return None

    def counted(self, weight: Tensor) -> Tensor:
        """How much each label counts in the mean over the batch, (B,).

        Args:
            weight: (B,) in [0, 1], what `forward` gave, or what was made of it.
        """
        return weight

    def penalty(self, strong: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Name -> scalar to add to the loss, `spec.<name>_weight` times.

        Args:
            strong: (B, C) logits of strong views of the same images.
            weight: (B,), as in `counted`.
        """
        return {}

    def metrics(self) -> dict[str, Tensor]:
        """Named scalars of its state to log, detached."""
        return {}


def sharpened(p: Tensor, temperature: float) -> Tensor:
    """softmax(log p / temperature), (B, C): p^(1 / temperature), renormalised."""
    return (p.log() / temperature).softmax(1)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """(B,) int64 -> (B, C) float32; torch's own looks at the numbers."""
    return (label[:, None] == torch.arange(classes, device=label.device)).float()


def over_kept(weight: Tensor) -> Tensor:
    """(B,) weights by which a mean over all rows is one over what is kept; over several ranks, what all of them keep.
    Nothing kept: nothing is learned."""
    kept = world().mean(weight.mean())
    return weight / kept.clamp(min=torch.finfo(weight.dtype).tiny)
