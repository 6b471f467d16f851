"""Strong views for a captured step: the same operations on all images, whatever was drawn for them.

`apply_strong` groups images by operation, and how many a group has is a matter of chance. Here every operation is
computed for every image, and each image takes that of its own; its pixels are the same, bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.data.views.cubic import move
from kdrun.data.views.levels import OUTSIDE, Op
from kdrun.data.views.randaugment import (
    StrongParams,
    StrongRecipe,
    affine,
    between,
    equalized,
    fill,
    grays,
    histograms,
    matrices,
    means,
    posterize,
    row_of,
    settings,
    smooth,
    solarize,
    solarize_add,
    source,
    stretched,
    warp,
)


@dataclass(frozen=True)
class FixedStrong:
    """Drawn numbers of `n` strong views, as the device takes them."""

    op: Tensor
    """(num_ops, n) int64."""
    maps: Tensor
    """(6, num_ops, n), see `affine`; of timm `matrices`."""
    setting: Tensor
    """(num_ops, n) float32."""
    box: Tensor
    """(n, 4) int16, the cutout."""
    color: Tensor
    """(W * 3,) uint8, a row of the cutout's color."""
    gray: Tensor
    """(W,) uint8, the same for images of one channel."""


def fixed(recipe: StrongRecipe, params: StrongParams, size: tuple[int, int]) -> FixedStrong:
    """On the CPU, for images of `size` (height, width)."""
    op, value = params.op.T.contiguous(), params.value.T.contiguous()
    rows = (row_of(recipe.fill, size[1], channels) for channels in (3, 1))
    maps = (matrices if recipe.levels == "timm" else affine)(op, value, *size)
    return FixedStrong(op, maps, settings(op, value), params.box.short(), *rows)


def apply_fixed(pixels: Tensor, recipe: StrongRecipe, params: FixedStrong) -> Tensor:
    """As `apply_strong`, with parameters on the device of the pixels."""
    _, height, width, channels = pixels.shape
    images = pixels.clone(memory_format=torch.contiguous_format)
    shown = torch.full_like(images, 255) if recipe.levels == "official" else None
    color = params.gray if channels == 1 else params.color
    for op, maps, setting in zip(params.op, params.maps.unbind(1), params.setting, strict=True):
        if recipe.levels == "timm":
            move(images, maps, color)
        else:
            seen = source(maps, height, width)
            warp(images, seen, OUTSIDE[recipe.levels])
        if shown is not None:
            warp(shown, seen)
            shown.masked_fill_(_wide(op > Op.SHARPNESS), 255)
        images = _blended(images, op, setting)
        posterize(images, torch.where(op == Op.POSTERIZE, setting, 8), [])
        solarize(images, torch.where(op == Op.SOLARIZE, setting, 256), [])
        _retone(images, op)
        if recipe.levels in ("imagenet", "timm"):
            images = torch.where(_wide(op == Op.INVERT), 255 - images, images)
            solarize_add(images, torch.where(op == Op.SOLARIZE_ADD, setting, 0), [])
    fill(images, torch.empty_like(images), shown, params.box, color)
    return images


def _wide(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _blended(images: Tensor, op: Tensor, factor: Tensor) -> Tensor:
    luma, base = grays(images), torch.empty(images.shape, device=images.device)
    smooth(images, base)
    base = torch.where(_wide(op == Op.COLOR), luma[..., None].float(), base)
    base = torch.where(_wide(op == Op.CONTRAST), _wide(means(luma).float()), base)
    base = torch.where(_wide(op == Op.BRIGHTNESS), 0.0, base)
    blends = (op >= Op.BRIGHTNESS) & (op <= Op.SHARPNESS)
    return torch.where(_wide(blends), between(base, images, factor).to(torch.uint8), images)


def _retone(images: Tensor, op: Tensor) -> None:
    bins, histogram = histograms(images)
    op = op.repeat_interleave(images.shape[3])[:, None]
    tables = torch.where(op == Op.AUTOCONTRAST, stretched(histogram), torch.arange(256, device=op.device).byte())
    tables = torch.where(op == Op.EQUALIZE, equalized(histogram, images.shape[1] * images.shape[2]), tables)
    torch.index_select(tables.view(-1), 0, bins, out=images.view(-1))
