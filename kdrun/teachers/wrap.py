"""Networks around networks: several as one, and one at a temperature."""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kdrun.core.errors import ConfigError
from kdrun.data.views.view import View
from kdrun.losses.logits import mean_of_probabilities
from kdrun.models.output import Output


class Ensemble(nn.Module):
    """Several networks as one: the logits are the logarithm of the mean of their probabilities, or the mean of logits.

    Its one feature is `members`, (B, K, classes), the logits of each.
    """

    def __init__(
        self, members: Sequence[nn.Module], mean: Literal["probabilities", "logits"] = "probabilities"
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mean = mean
        self.dims = {"members": len(members)}
        self.name = "+".join(str(member.name) for member in members)

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        if unknown := [name for name in features if name != "members"]:
            raise ConfigError(f"an ensemble of teachers has no feature {unknown[0]!r}")
        each = [member(view).logits for member in self.members]
        stacked = torch.stack(each)
        logits = stacked.mean(0) if self.mean == "logits" else mean_of_probabilities(stacked)
        return Output(logits, {"members": torch.stack(each, 1)} if features else {})


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature (Guo et al. 2017, arXiv 1706.04599); its features are not."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.dims = network.dims
        self.name = network.name

    @property
    def reductions(self) -> dict[str, int]:
        """The network's own, where it tells."""
        found: dict[str, int] = getattr(self.network, "reductions", {})
        return found

    @property
    def norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The network's own, where it tells."""
        found: dict[str, tuple[Tensor, Tensor]] = getattr(self.network, "norms", {})
        return found

    @property
    def class_embeddings(self) -> Tensor | None:
        """The network's own, of a CLIP."""
        found: Tensor | None = getattr(self.network, "class_embeddings", None)
        return found

    @property
    def linear_classifier(self) -> Callable[[Tensor], Tensor] | None:
        """The network's own, at the temperature."""
        found: Callable[[Tensor], Tensor] | None = getattr(self.network, "linear_classifier", None)
        return None if found is None else lambda prelogits: found(prelogits) / self.temperature

    @property
    def last_layer(self) -> nn.Linear | None:
        """A copy of the network's own, at the temperature."""
        found: nn.Linear | None = copy.deepcopy(getattr(self.network, "last_layer", None))
        if found is not None:
            with torch.no_grad():
                for parameter in found.parameters():
                    parameter.div_(self.temperature)
        return found

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        out: Output = self.network(view, features)
        return Output(out.logits / self.temperature, out.features)
