"""Strong views whose magnitudes follow what the network in training makes of them: CTAugment, as FixMatch has it.

Berthelot et al., ReMixMatch, 2020, arXiv 1911.09785; Sohn et al., FixMatch, 2020, arXiv 2001.07685; the rules are those
of google-research/fixmatch, libml/ctaugment.py and fixmatch.py.

A magnitude has bins, and each bin a rate. The host draws the operations and uniform numbers of every view, a pure
function of seed and step as ever; a loader carries them beside a weak view (`Policy`), and only where a step is taken
do the rates then in force say which bins the numbers mean. So views may be made ahead, and a step may be captured.

Values are Pillow's bit for bit, those of `rescale` within 1. Not followed: the way through float32 and back.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kdrun.core.device import send
from kdrun.data.views.box import in_box
from kdrun.data.views.levels import Op
from kdrun.data.views.randaugment import (
    StrongRecipe,
    affine,
    between,
    draw_strong,
    equalized,
    fill,
    grays,
    histograms,
    means,
    posterize,
    shade,
    smooth,
    solarize,
    source,
    stretched,
    warp,
)


class Cta(IntEnum):
    """The operations, drawn uniformly."""

    AUTOCONTRAST = 0
    BLUR = 1
    BRIGHTNESS = 2
    COLOR = 3
    CONTRAST = 4
    CUTOUT = 5
    EQUALIZE = 6
    INVERT = 7
    POSTERIZE = 8
    RESCALE = 9
    ROTATE = 10
    SHARPNESS = 11
    SHEAR_X = 12
    SHEAR_Y = 13
    SMOOTH = 14
    SOLARIZE = 15
    IDENTITY = 16
    TRANSLATE_X = 17
    TRANSLATE_Y = 18


METHOD = len(Cta)  # row of the second number that RESCALE takes, which filter resizes
WIDEST = 17
BINS = [{Cta.POSTERIZE: 8, Cta.IDENTITY: 0}.get(op, WIDEST) for op in Cta] + [6]
NEVER = len(BINS)  # row of a number that an operation does not take
GRAY = 127


@dataclass(frozen=True)
class CtaParams:
    """Drawn numbers of `n` views."""

    op: Tensor
    """(n, depth) int64, a `Cta`."""
    within: Tensor
    """(n, depth, 2) float64, uniform: where in its bin each number that the operation takes is."""
    chooser: Tensor
    """(n, depth, 2) float64, uniform: which bin."""
    place: Tensor
    """(n, depth, 2) float64, uniform: center of a drawn cutout."""
    box: Tensor
    """(n, 4) int16, the cutout behind all operations, as in `StrongParams`."""


def draw_cta(recipe: StrongRecipe, generator: Generator, n: int, size: tuple[int, int]) -> CtaParams:
    """Draw for `n` views of images of `size` (height, width); `recipe` says how many operations, and the cutout."""
    uniform = torch.rand(n, recipe.num_ops, 7, generator=generator, dtype=torch.float64)
    op = (uniform[..., 0] * len(Cta)).long()
    none = StrongRecipe(0, 0.0, "official", recipe.cutout, recipe.fill)
    box = draw_strong(none, generator, n, size).box.short()
    return CtaParams(op, uniform[..., 1:3], uniform[..., 3:5], uniform[..., 5:], box)


@dataclass(frozen=True)
class Policy:
    """What is still to be done to the pixels of a view."""

    params: CtaParams
    probe: bool
    """Magnitudes are uniform, whatever the rates: to learn the rates from."""
    fixed: bool
    """The same operations on all images, whatever was drawn, as `Recipe.apply_fixed`."""
    fill: tuple[int, ...] = (GRAY,)

    def split(self, sizes: int | list[int]) -> list["Policy"]:
        """Of so many views each, or of one size after the other."""
        parts = zip(*(getattr(self.params, f.name).split(sizes) for f in fields(CtaParams)), strict=True)
        return [replace(self, params=CtaParams(*part)) for part in parts]

    def levels(self, rates: Tensor, threshold: float, decay: float) -> Tensor:
        """(n, depth, 2) float64 in [0, 1), on the device of the rates (`fresh_rates`)."""
        within = send(self.params.within, rates.device)
        if self.probe:
            return within
        row, bins = rows_of(send(self.params.op, rates.device)), bins_of(rates.device)
        choice = (send(self.params.chooser, rates.device)[..., None] >= shares(rates, threshold, decay)[row]).sum(-1)
        return (choice + within) / bins[row].clamp(min=1)

    def applied(self, pixels: Tensor, levels: Tensor) -> Tensor:
        """The view.

        Args:
            pixels: (B, C, H, W) uint8; they stay as they are.
            levels: of `levels`.
        """
        images, params, device = pixels.permute(0, 2, 3, 1).contiguous(), self.params, pixels.device
        place = send(params.place, device)
        for slot, op in enumerate(params.op.unbind(1)):
            change = _masked if self.fixed else _grouped
            images = change(images, op, levels[:, slot], place[:, slot])
        if not self.probe:
            fill(images, torch.empty_like(images), None, send(params.box, device), self._color(images))
        return images.permute(0, 3, 1, 2)

    def _color(self, images: Tensor) -> Tensor:
        """As `row_of`, filled on the device: a captured step takes no constant from the host."""
        width, channels = images.shape[2:]
        row = [torch.full((width,), c, dtype=torch.uint8, device=images.device) for c in shade(self.fill, channels)]
        return torch.stack(row, 1).flatten()


def fresh_rates() -> Tensor:
    """(20, 17) float32: the rate of each bin of each operation's number, and of RESCALE's filter; 0: no such bin."""
    return (torch.arange(WIDEST) < torch.tensor(BINS)[:, None]).float()


def shares(rates: Tensor, threshold: float, decay: float) -> Tensor:
    """(21, 17) float64: up to which uniform number each bin is chosen; the last row is `NEVER`'s."""
    weight = torch.where(rates > 0, rates + (1 - decay), 0)  # no rate of a bin that there is comes to 0
    weight = weight / weight.amax(1, keepdim=True).clamp(min=1e-30)
    up_to = torch.where(weight < threshold, 0, weight).double().cumsum(1)
    return F.pad(up_to / up_to[:, -1:].clamp(min=1e-30), (0, 0, 0, 1), value=1)


def learned(rates: Tensor, op: Tensor, levels: Tensor, match: Tensor, decay: float) -> Tensor:
    """The rates after a batch of probes, as if one view followed the other: rate <- decay rate + (1 - decay) match.

    Args:
        op: (n, depth), on the device of the rates.
        levels: (n, depth, 2), of `Policy.levels`.
        match: (n,), 1 - half the L1 distance of a prediction and the label.
    """
    row = rows_of(op)
    bins = bins_of(rates.device)[row]
    place = torch.where(row == NEVER, rates.numel(), row * WIDEST + (levels * bins * 0.999).long()).view(-1)
    value = match[:, None, None].expand(levels.shape).reshape(-1).to(rates.dtype)
    order = torch.arange(len(place), device=place.device)
    behind = ((place[:, None] == place) & (order > order[:, None])).sum(1)  # how many of the same bin follow
    hits = (torch.arange(rates.numel(), device=place.device)[:, None] == place).to(rates.dtype)
    gained = hits @ ((1 - decay) * value * decay**behind)
    return rates * (decay ** hits.sum(1)).view_as(rates) + gained.view_as(rates)


def rows_of(op: Tensor) -> Tensor:
    """(..., 2): the rows of the numbers that operations take."""
    first = torch.where(op == Cta.IDENTITY, NEVER, op)
    return torch.stack([first, torch.where(op == Cta.RESCALE, METHOD, NEVER)], -1)


def bins_of(device: torch.device) -> Tensor:
    """(21,) int64: bins of each row."""
    numbers = torch.full((NEVER + 1,), WIDEST, device=device)
    for row, bins in enumerate((*BINS, 0)):
        if bins != WIDEST:
            numbers[row] = bins
    return numbers


# ------------------------------------------------------------------------------------------------------- operations

Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images (k, H, W, C) uint8, levels (k, 2) float64, place (k, 2) float64) -> uint8, of the same shape."""


def _grouped(images: Tensor, op: Tensor, level: Tensor, place: Tensor) -> Tensor:
    """The host knows the operations: each is computed for its own images alone."""
    order = op.argsort(stable=True)
    sizes = torch.bincount(op, minlength=len(Cta)).tolist()
    where = send(order, images.device)
    parts = zip(*(values[where].split(sizes) for values in (images, level, place)), strict=True)
    done = [CHANGES[k](*part) if k in CHANGES and sizes[k] else part[0] for k, part in enumerate(parts)]
    return torch.empty_like(images).index_copy_(0, where, torch.cat(done))


def _masked(images: Tensor, op: Tensor, level: Tensor, place: Tensor) -> Tensor:
    out = images
    for k, change in CHANGES.items():
        out = torch.where((op == k)[:, None, None, None], change(images, level, place), out)
    return out


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _blended(other: Callable[[Tensor], Tensor]) -> Change:
    """Pillow's blend of an image and what becomes of it."""

    def change(images: Tensor, level: Tensor, place: Tensor) -> Tensor:
        return between(images, other(images), level[:, 0].float()).to(torch.uint8)

    return change


def _enhanced(base: Callable[[Tensor], Tensor]) -> Change:
    """Away from a degenerate image: factors from 0.1 to 2."""

    def change(images: Tensor, level: Tensor, place: Tensor) -> Tensor:
        return between(base(images), images, (0.1 + 1.9 * level[:, 0]).float()).to(torch.uint8)

    return change


def _toned(tables: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def toned(images: Tensor) -> Tensor:
        bins, histogram = histograms(images)
        return tables(histogram).view(-1)[bins].view_as(images)

    return toned


def _equalized(images: Tensor) -> Tensor:
    pixels = images.shape[1] * images.shape[2]
    return _toned(lambda histogram: equalized(histogram, pixels))(images)


def _smooth(images: Tensor) -> Tensor:
    out = torch.empty(images.shape, device=images.device)
    smooth(images, out)
    return out


def _blur(images: Tensor) -> Tensor:
    """Pillow's BLUR: the mean of the 16 pixels two away, the border of two pixels copied."""
    out, wide = images.float(), images.short()
    if min(images.shape[1:3]) > 4:
        ring = _sums(wide, 5) - _sums(wide[:, 1:-1, 1:-1], 3)
        out[:, 2:-2, 2:-2] = ((ring + 8) >> 4).float()
    return out


def _sums(wide: Tensor, side: int) -> Tensor:
    """Of all squares of so many pixels a side."""
    for dim in (1, 2):
        wide = torch.stack([wide.narrow(dim, k, wide.shape[dim] - side + 1) for k in range(side)]).sum(0)
    return wide


def _moved(op: Op, value: Callable[[Tensor], Tensor]) -> Change:
    def change(images: Tensor, level: Tensor, place: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        given = value(2 * level[:, 0] - 1)[None]
        maps = affine(torch.full_like(given, int(op), dtype=torch.int64), given, height, width)[:, 0]
        out = images.clone()
        warp(out, source(maps, height, width))
        return out

    return change


def _posterized(images: Tensor, level: Tensor, place: Tensor) -> Tensor:
    out = images.clone()
    posterize(out, 1 + (level[:, 0] * 7.999).floor(), [])
    return out


def _solarized(images: Tensor, level: Tensor, place: Tensor) -> Tensor:
    out = images.clone()
    solarize(out, (level[:, 0] * 255.999).floor(), [])
    return out


def _cut(images: Tensor, level: Tensor, place: Tensor) -> Tensor:
    """A gray square around a pixel, of up to half the side."""
    edges: list[Tensor] = []
    half = (1 + (level[:, 0] * min(images.shape[1:3]) * 0.499).floor()).div(2, rounding_mode="floor")
    for length, at in zip(images.shape[1:3], place.unbind(1), strict=True):
        center = (at * length).floor()
        edges += [center - half, center + half]
    return torch.where(in_box(torch.stack(edges, 1), *images.shape[1:3])[..., None], GRAY, images)


def _rescaled(images: Tensor, level: Tensor, place: Tensor) -> Tensor:
    """The middle, without up to a quarter at each side, resized by one of Pillow's six filters."""
    kind, out = (level[:, 1] * 5.99).floor(), images.float()
    for dim, length in ((2, images.shape[2]), (1, images.shape[1])):  # along rows first, and rounded then, as Pillow
        first = (level[:, 0] * 0.25 * length).round()
        size = (length * (1 - level[:, 0] * 0.25)).round() - first
        matrix = _weights(first.float(), size.float(), length, kind)
        out = torch.einsum("kow,khwc->khoc" if dim == 2 else "koh,khwc->kowc", matrix, out)
        out = (out + 0.5).floor().clamp(0, 255)
    return out.to(torch.uint8)


def _weights(first: Tensor, size: Tensor, length: int, kind: Tensor) -> Tensor:
    """(k, length, length): what each pixel of the middle adds to each output pixel; sums are 1. It never shrinks."""
    pixel = torch.arange(length, device=first.device) - first[:, None, None]  # counted from the middle's edge
    scale = (size / length)[:, None, None]
    center = (torch.arange(length, device=first.device)[:, None] + 0.5) * scale
    # Pillow's filters widen where an image shrinks; the crop is never larger than the image
    x = pixel + 0.5 - center
    near = x.abs()
    inner, outer = (1.5 * near - 2.5) * near**2 + 1, ((-0.5 * near + 2.5) * near - 4) * near + 2
    filters = [
        torch.where(near < 3, torch.sinc(x) * torch.sinc(x / 3), 0),  # Lanczos
        torch.where(near < 1, inner, torch.where(near < 2, outer, 0)),  # Keys' cubic, a = -1/2
        (1 - near).clamp(min=0),
        ((x > -0.5) & (x <= 0.5)).float(),
        torch.where(near < 1, torch.sinc(x) * (0.54 + 0.46 * (torch.pi * x).cos()), 0),  # Hamming
        (pixel == center.floor()).float(),
    ]
    weight = filters[-1]
    for k, values in enumerate(filters[:-1]):
        weight = torch.where((kind == k)[:, None, None], values, weight)
    weight = weight * ((pixel >= 0) & (pixel < size[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


CHANGES: dict[int, Change] = {
    Cta.AUTOCONTRAST: _blended(_toned(stretched)),
    Cta.BLUR: _blended(_blur),
    Cta.BRIGHTNESS: _enhanced(torch.zeros_like),
    Cta.COLOR: _enhanced(lambda images: grays(images)[..., None].float()),
    Cta.CONTRAST: _enhanced(lambda images: _wide(means(grays(images)).float())),
    Cta.CUTOUT: _cut,
    Cta.EQUALIZE: _blended(_equalized),
    Cta.INVERT: _blended(lambda images: 255 - images),
    Cta.POSTERIZE: _posterized,
    Cta.RESCALE: _rescaled,
    Cta.ROTATE: _moved(Op.ROTATE, lambda share: (share * 45).round()),
    Cta.SHARPNESS: _enhanced(_smooth),
    Cta.SHEAR_X: _moved(Op.SHEAR_X, lambda share: share * 0.3),
    Cta.SHEAR_Y: _moved(Op.SHEAR_Y, lambda share: share * 0.3),
    Cta.SMOOTH: _blended(_smooth),
    Cta.SOLARIZE: _solarized,
}
"""Others leave an image as it is: the authors' shifts are of 0.3 pixels at most, which Pillow rounds to 0."""
