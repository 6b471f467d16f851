"""Views of images: batched, per sample, on the training device, as two functions `draw` and `apply`.

`draw` makes all random numbers on the CPU from a generator; `apply` is deterministic. Pixels stay uint8 and are not
normalised: every network normalises its own input.
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from kdrun.config import WeakConfig
from kdrun.device import send
from kdrun.errors import ConfigError


@dataclass(frozen=True)
class View:
    """One view of a batch of images."""

    pixels: Tensor
    """(B, C, H, W) uint8, or float32 in [0, 1] once mixed; not normalised."""
    index: Tensor
    """(B,) int64, position in the dataset's train (or test) array."""
    replay: Tensor | None = None
    """(B,) int64, which stored draw this is; None: fresh."""


@dataclass(frozen=True)
class Samples:
    """What a stream gives at a step."""

    views: dict[str, View]
    target: Tensor | None
    """(B,) int64, or (B, classes) float32 once mixed; None for unlabeled streams."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Artifacts looked up by index, each (B, ...)."""


Batch = dict[str, Samples]


@dataclass(frozen=True)
class Weak:
    """Recipe of the weak view for images of a known size: random shift after padding, random mirroring."""

    pad: int
    reflect: bool
    flip: bool

    @classmethod
    def of(cls, config: WeakConfig, size: tuple[int, int], mirror: bool) -> "Weak":
        pad = min(size) // 8 if config.pad is None else config.pad
        if pad >= min(size):
            raise ConfigError(f"views.weak.pad: {pad} is too wide for images of {size[0]}x{size[1]} pixels")
        return cls(pad, config.pad_mode == "reflect", config.flip and mirror)


@dataclass(frozen=True)
class Params:
    """Drawn numbers of a weak view."""

    dy: Tensor  # (B,) int64, shift in pixels, -pad..pad
    dx: Tensor
    flip: Tensor  # (B,) bool


def draw(recipe: Weak, generator: Generator, n: int) -> Params:
    """Draw the parameters of `n` views, on the CPU."""
    shift = torch.randint(-recipe.pad, recipe.pad + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5 if recipe.flip else torch.zeros(n, dtype=torch.bool)
    return Params(shift[0], shift[1], flip)


def apply(images: Tensor, index: Tensor, recipe: Weak, params: Params) -> Tensor:
    """Gather the views of `images[index]`: no padded copy is made, pixels outside are computed by index.

    Args:
        images: (N, H, W, C) uint8, the resident dataset.
        index: (B,) int64.

    Returns:
        (B, C, H, W) uint8 in channels_last memory.
    """
    n, height, width, channels = images.shape
    device = images.device
    rows, row_ok = _source(torch.arange(height, device=device), send(params.dy, device), height, recipe.reflect)
    columns = torch.arange(width, device=device)
    columns = torch.where(send(params.flip, device)[:, None], width - 1 - columns, columns)
    columns, column_ok = _source(columns, send(params.dx, device), width, recipe.reflect)
    flat = (index[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]  # (B, H, W)
    out = images.view(n * height * width, channels)[flat]  # (B, H, W, C)
    if not recipe.reflect and recipe.pad:
        out *= (row_ok[:, :, None] & column_ok[:, None, :])[..., None]
    return out.permute(0, 3, 1, 2)


def clean(images: Tensor, index: Tensor) -> Tensor:
    """`images[index]` as (B, C, H, W) uint8 in channels_last memory."""
    return images[index].permute(0, 3, 1, 2)


def _source(position: Tensor, shift: Tensor, size: int, reflect: bool) -> tuple[Tensor, Tensor]:
    """Source coordinates (B, size) of shifted output positions, and which of them lie inside the image."""
    at = position + shift[:, None]
    inside = (at >= 0) & (at < size)
    if reflect:
        at = at.abs()
        at = torch.where(at >= size, 2 * (size - 1) - at, at)
    return at.clamp(0, size - 1), inside
