"""The handle of a frozen network."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.core.device import exactly
from kdrun.core.errors import ConfigError
from kdrun.data.views.view import View
from kdrun.models.output import Output


class Teacher:
    """A frozen network. Not an nn.Module, so it cannot be trained, moved or saved along with a method.

    Args:
        precision: of its passes in training, see `teacher.precision`; None: that around them.
    """

    def __init__(self, network: nn.Module, precision: str | None = None) -> None:
        frozen: Any = network.eval().requires_grad_(False)
        self.network = frozen
        """What is asked, without the cache: for who compiles it, or keeps what it says."""
        self.dims: dict[str, int] = frozen.dims
        self.name: str = frozen.name
        self.precision = precision
        self.kept: Callable[[Tensor, Tensor], Tensor] | None = None
        """(index, replay) -> logits (B, C) of stored views, which the network need not see; see `teacher.cache`."""

    @torch.no_grad()
    def __call__(self, view: View | Tensor, features: tuple[str, ...] = ()) -> Output:
        if self.kept is not None and isinstance(view, View) and view.replay is not None:
            if features:
                raise ConfigError(
                    f"teacher.cache.mode: only logits are kept, and {features[0]} is asked; set it to off"
                )
            return Output(self.kept(view.index, view.replay), {})
        with self._precision():
            out: Output = self.network(view, features)
        if self.precision is None:
            return out
        return Output(out.logits.float(), {name: feature.float() for name, feature in out.features.items()})

    @torch.no_grad()
    def predict(self, view: View) -> dict[str, Tensor]:
        """Its logits as those of the network `teacher`, for evaluation."""
        return {"teacher": self.network(view).logits}

    @property
    def class_embeddings(self) -> Tensor | None:
        """(C, D) float32 of length 1, on the teacher's device: the classes in the space of a CLIP; None of others."""
        found: Tensor | None = getattr(self.network, "class_embeddings", None)
        return found

    @property
    def classifier(self) -> Callable[[Tensor], Tensor] | None:
        """`prelogits` (B, D) -> its logits (B, C), one linear layer; None where such a layer does not make them."""
        found: Callable[[Tensor], Tensor] | None = getattr(self.network, "linear_classifier", None)
        return found

    @property
    def last_layer(self) -> nn.Linear | None:
        """The layer of `classifier`, to be copied; None where no such layer makes the logits."""
        found: nn.Linear | None = getattr(self.network, "last_layer", None)
        return found

    @property
    def has_dropout(self) -> bool:
        return bool(self._dropouts())

    @torch.no_grad()
    def mc_samples(self, view: View | Tensor, passes: int, seed: int) -> Tensor:
        """Logits (passes, B, C) with dropout active, drawn from `seed`; all else stays as in evaluation."""
        dropouts = self._dropouts()
        for module in dropouts:
            module.training = True  # the flag of this module alone: batch normalisation inside it keeps its own
        try:
            # unlike `Context.draw`, dropout draws where the network is: other devices, other numbers
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                with self._precision():
                    return torch.stack([self.network(view).logits for _ in range(passes)])
        finally:
            for module in dropouts:
                module.training = False

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.precision is None else exactly(self._device, self.precision)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self.network.parameters())).device
        return device

    def _dropouts(self) -> list[nn.Module]:
        """Modules that drop something: torch's, and those that do so in their forward pass (timm's `drop_rate`)."""
        return [m for m in self.network.modules() if _drops(m)]


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    rate = getattr(module, "drop_rate", 0)
    return isinstance(rate, float | int) and rate > 0
