"""What a network gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Output:
    """What a network gives for a batch."""

    logits: Tensor
    """(B, classes) float32."""
    features: dict[str, Tensor]
    """The features that were asked for."""

    def detach(self) -> "Output":
        return Output(self.logits.detach(), {name: value.detach() for name, value in self.features.items()})

    def split(self, sizes: Sequence[int]) -> "list[Output]":
        """The parts of a joint batch."""
        features = {name: value.split(list(sizes)) for name, value in self.features.items()}
        logits = self.logits.split(list(sizes))
        return [Output(part, {n: parts[k] for n, parts in features.items()}) for k, part in enumerate(logits)]
