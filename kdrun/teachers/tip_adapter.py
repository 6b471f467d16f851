"""Tip-Adapter-F (Zhang et al. 2022, arXiv 2111.03930): a frozen CLIP with a cache of labeled images, its keys trained.

logits = scale f W^T + a exp(-b (1 - f F^T)) V, where f are image features and W class embeddings, both of length 1, F
(M, D) the keys of the M labeled images and V (M, C) their labels, one-hot. `kdrun.methods.tip_adapter` trains it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.teacher import AdapterConfig
from kdrun.core.errors import DataError
from kdrun.data.views.view import View
from kdrun.models.output import Output
from kdrun.models.weights import read_state

FEATURE = "prelogits"  # of a CLIP: its image features, of length 1
ROWS = 4096  # images at once: their similarities to 16,000 keys are 0.3 GB


class Cache(nn.Module):
    """F, V, a and b.

    Args:
        target: (M,) int64, the class of each key.
        dim: D.
        chosen: whether a and b are chosen on validation images, so that a file of weights holds them.
    """

    target: Tensor
    residual_ratio: Tensor
    """() a."""
    sharpness: Tensor
    """() b."""

    def __init__(
        self, target: Tensor, dim: int, num_classes: int, residual_ratio: float, sharpness: float, chosen: bool = True
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.keys = nn.Parameter(torch.zeros(len(target), dim))
        self.register_buffer("target", target.clone())
        self.register_buffer("residual_ratio", torch.tensor(residual_ratio), persistent=chosen)
        self.register_buffer("sharpness", torch.tensor(sharpness), persistent=chosen)

    def forward(self, clip: Output) -> Tensor:
        """(B, C) float32, from what the CLIP gives with its image features."""
        return clip.logits.float() + self.residual_ratio * self.votes(clip.features[FEATURE], self.sharpness)

    def votes(self, image: Tensor, sharpness: Tensor | float) -> Tensor:
        """exp(-b (1 - f F^T)) V, (B, C) float32.

        Args:
            image: (B, D), f.
            sharpness: b.
        """
        label = (self.target[:, None] == torch.arange(self.num_classes, device=self.target.device)).float()
        kind = "cpu" if image.is_meta else image.device.type
        with torch.autocast(kind, enabled=False):  # a similarity that is off by 0.4 % is off by more in the exponent
            parts = image.float().split(ROWS)
            return torch.cat([(sharpness * (part @ self.keys.T - 1)).exp() @ label for part in parts])


class TipAdapter(nn.Module):
    """A CLIP with a cache, as a network of kdrun. Its one feature is the CLIP's."""

    def __init__(self, clip: nn.Module, cache: Cache) -> None:
        super().__init__()
        self.clip = clip
        self.cache = cache
        self.dims = clip.dims
        self.name = f"{clip.name} with a cache"

    @property
    def class_embeddings(self) -> Tensor | None:
        """The CLIP's."""
        found: Tensor | None = getattr(self.clip, "class_embeddings", None)
        return found

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        out: Output = self.clip(view, (FEATURE, *features))
        return Output(self.cache(out), out.features if features else {})


def trained(clip: nn.Module, run: Path, num_classes: int, adapter: AdapterConfig) -> TipAdapter:
    """A CLIP with the cache that the run of method=tip_adapter in the directory `run` has trained.

    Args:
        adapter: of that run; its a and b count where none were chosen.

    Raises:
        DataError: its file is gone or damaged.
    """
    path = run / "method.safetensors"
    state = {name.removeprefix("cache."): value for name, value in read_state(path, str(path)).items()}
    keys, target = state.get("keys"), state.get("target")
    dims: Any = clip.dims
    if keys is None or target is None or keys.shape != (len(target), dims[FEATURE]):
        raise DataError(f"{path}: does not hold the keys of a Tip-Adapter over {clip.name}; delete {run}")
    cache = Cache(target, keys.shape[1], num_classes, adapter.residual_ratio, adapter.sharpness, adapter.search)
    own = cache.state_dict().keys()  # files of before 0.2 hold a and b in any case
    cache.load_state_dict({name: value for name, value in state.items() if name in own})
    return TipAdapter(clip, cache)


def untrained(clip: nn.Module, num_classes: int) -> TipAdapter:
    """A CLIP with an empty cache."""
    dims: Any = clip.dims
    return TipAdapter(clip, Cache(torch.zeros(0, dtype=torch.int64), dims[FEATURE], num_classes, 1.0, 1.0))
