"""What a method chooses on the validation images. The evaluator runs it; labels of test images never come here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdrun.core.world import world
from kdrun.data.views.view import View

Inputs = Mapping[str, Tensor]  # name -> (M, ...)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A grid, and how a value is applied. `apply(inputs(view))` is the method's `predict(view)`."""

    net: str
    """Whose accuracy counts, a name of `predict`."""
    values: Mapping[str, Tensor]
    """Name -> () buffer of the method that holds the value in force: persistent, so that a finished run keeps it."""
    inputs: Callable[[View], dict[str, Tensor]]
    """What it is computed from, (B, ...) each: the pass of the networks, made once."""
    candidates: Callable[[Inputs], Iterable[tuple[tuple[float, ...], Tensor]]]
    """Of the inputs of all validation images: the values in the order of `values`, and the logits (M, C) with them."""
    apply: Callable[[Inputs], dict[str, Tensor]]
    """Network -> logits (M, C), with the values in force."""

    def best(self, inputs: Inputs, target: Tensor) -> tuple[float, ...]:
        """The candidate of the highest accuracy; of several that of the lowest NLL, then the first.

        Args:
            target: (M,) int64, labels of the validation images.
        """
        grid, found = [], []
        for values, logits in self.candidates(inputs):
            right = (logits.argmax(1) == target).sum().float()
            grid.append(values)
            found.append(torch.stack([right, -F.cross_entropy(logits, target)]))
        scores = torch.stack(found).tolist()  # one transfer for all
        return max(zip(grid, scores, strict=True), key=lambda item: tuple(item[1]))[0]

    @torch.no_grad()
    def make(self, inputs: Inputs, target: Tensor) -> None:
        """Put the best candidate in force, over several ranks what rank 0 finds best. Arguments as in `best`."""
        best = world().once(lambda: self.best(inputs, target))
        for buffer, value in zip(self.values.values(), best, strict=True):
            buffer.fill_(value)

    def metrics(self) -> dict[str, float]:
        """`val/<net>/<name>` of the values in force."""
        return {f"val/{self.net}/{name}": round(value.item(), 6) for name, value in self.values.items()}
