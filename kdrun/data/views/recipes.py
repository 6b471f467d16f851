"""Views of images: batched, per sample, on the training device. A recipe has two functions, `draw` and `apply`.

`draw` makes all random numbers on the CPU from a generator; `apply` is deterministic. Pixels stay uint8 and are not
normalised: every network normalises its own input.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from kdrun.config.views import StrongConfig, ViewsConfig, WeakConfig
from kdrun.core.device import send
from kdrun.core.errors import ConfigError
from kdrun.data.types import Images
from kdrun.data.views.ctaugment import CtaParams, Policy, draw_cta
from kdrun.data.views.erase import NOTHING, Erase, Erased
from kdrun.data.views.fixed import FixedStrong, apply_fixed, fixed
from kdrun.data.views.randaugment import StrongParams, StrongRecipe, apply_strong, draw_strong
from kdrun.data.views.resample import resize_boxes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class WeakParams:
    """Drawn numbers of weak views."""

    dy: Tensor
    """(n,) int64, shift in pixels, -pad to pad."""
    dx: Tensor
    flip: Tensor
    """(n,) bool."""


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

    def draw(self, generator: Generator, n: int) -> WeakParams:
        shift = torch.randint(-self.pad, self.pad + 1, (2, n), generator=generator)
        flip = torch.rand(n, generator=generator) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        return WeakParams(shift[0], shift[1], flip)

    def apply(self, images: Tensor, index: Tensor, params: WeakParams) -> Tensor:
        return self.gather(images, index, params).permute(0, 3, 1, 2)

    def gather(self, images: Tensor, index: Tensor, params: WeakParams) -> Tensor:
        """As `apply`, but (B, H, W, C). No padded copy is made: pixels outside are found by index."""
        n, height, width, channels = images.shape
        device = images.device
        rows, row_ok = _source(torch.arange(height, device=device), send(params.dy, device), height, self.reflect)
        columns = torch.arange(width, device=device)
        columns = torch.where(send(params.flip, device)[:, None], width - 1 - columns, columns)
        columns, column_ok = _source(columns, send(params.dx, device), width, self.reflect)
        flat = (index[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]  # (B, H, W)
        out = images.view(n * height * width, channels)[flat]
        if not self.reflect and self.pad:
            out *= (row_ok[:, :, None] & column_ok[:, None, :])[..., None]
        return out

    def fixed(self, params: WeakParams) -> WeakParams:
        return params

    gather_fixed, apply_fixed = gather, apply  # they do the same whatever was drawn


@dataclass(frozen=True)
class CropParams:
    """Drawn numbers of crops at random scales."""

    box: Tensor
    """(n, 4) int64: top, left, height and width."""
    flip: Tensor
    """(n,) bool."""


@dataclass(frozen=True)
class Crop:
    """Recipe of the weak view for large images: a box of random area and shape, resized, and random mirroring.

    RandomResizedCrop of torchvision (Szegedy et al. 2015, arXiv 1409.4842): of ten draws the first box that fits, else
    the center one.
    """

    source: tuple[int, int]
    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    mode: str
    flip: bool

    TRIES = 10

    @classmethod
    def of(cls, config: ViewsConfig, size: tuple[int, int], mirror: bool) -> "Crop":
        weak = config.weak
        low, high = weak.scale or (1.0, 1.0)
        side = min(size) if config.size is None else config.size
        return cls(size, side, (low, high), (weak.ratio[0], weak.ratio[1]), weak.interpolation, weak.flip and mirror)

    def draw(self, generator: Generator, n: int) -> Any:
        tries, place, flip = self.numbers(generator, n)
        return CropParams(self.boxes(tries, place, self.source), flip)

    def numbers(self, generator: Generator, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Uniform numbers for the area and the shape of each try (2, n, TRIES) and for the place (2, n); flips (n,)."""
        tries = torch.rand(2, n, self.TRIES, generator=generator, dtype=torch.float64)
        place = torch.rand(2, n, generator=generator, dtype=torch.float64)
        flip = torch.rand(n, generator=generator) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        return tries, place, flip

    def boxes(self, tries: Tensor, place: Tensor, source: tuple[int, int]) -> Tensor:
        """(n, 4) int64 boxes within images of height and width `source`, by the numbers that `numbers` drew."""
        (height, width), (area, shape), n = source, tries, len(place[0])
        (least, most), (low, high) = self.scale, map(math.log, self.ratio)
        area = height * width * (least + (most - least) * area)
        shape = (low + (high - low) * shape).exp()
        side = torch.stack([area / shape, area * shape]).sqrt().round().long()  # (2, n, TRIES): height and width
        room = torch.tensor([height, width])[:, None, None]
        fits = ((side > 0) & (side <= room)).all(0)
        first = fits.int().argmax(1).expand(2, n)
        side = side.gather(2, first[..., None]).squeeze(2)
        start = (place * (room[..., 0] - side + 1)).long()
        return torch.where(fits.any(1)[:, None], torch.cat([start, side]).T, self._fallback(height, width))

    def _fallback(self, height: int, width: int) -> Tensor:
        """The largest box of an allowed shape, in the center."""
        high = min(height, round(width / self.ratio[0]))
        wide = min(width, round(height * self.ratio[1]))
        return torch.tensor([(height - high) // 2, (width - wide) // 2, high, wide])

    def apply(self, images: Tensor, index: Tensor, params: CropParams) -> Tensor:
        return self.gather(images, index, params).permute(0, 3, 1, 2)

    def gather(self, images: Tensor, index: Tensor, params: Any) -> Tensor:
        """As `apply`, but (B, size, size, C)."""
        out = resize_boxes(images.index_select(0, index), params.box, self.size, self.mode)
        return mirrored(out, params.flip)

    def fixed(self, params: Any) -> Any:
        return params

    def apply_fixed(self, images: Tensor, index: Tensor, params: Any) -> Tensor:
        return self.gather_fixed(images, index, params).permute(0, 3, 1, 2)

    def gather_fixed(self, images: Tensor, index: Tensor, params: Any) -> Tensor:
        """As `gather`; on a CPU the values are those of an accelerator."""
        out = resize_boxes(images.index_select(0, index), params.box, self.size, self.mode, alike=True)
        return mirrored_fixed(out, params.flip)


@dataclass(frozen=True)
class FileCropParams:
    """Drawn numbers of crops of files, whose sizes are not known yet."""

    tries: Tensor
    """(n, 2, TRIES) float64, uniform: for area and shape."""
    place: Tensor
    """(n, 2) float64, uniform."""
    flip: Tensor
    """(n,) bool."""


@dataclass(frozen=True)
class FileCrop(Crop):
    """As `Crop`, with the same random numbers, of streamed files: each box lies in the file's own pixels.

    Workers `cut` it out and resize it with Pillow, as torchvision does; what is left is mirroring.
    """

    def draw(self, generator: Generator, n: int) -> FileCropParams:
        tries, place, flip = self.numbers(generator, n)
        return FileCropParams(tries.transpose(0, 1), place.T, flip)

    def cut(self, image: "Image", params: FileCropParams, k: int) -> Images:
        """(size, size, 3) uint8: the k-th of `params`."""
        from PIL.Image import Resampling

        numbers = params.tries[k].unsqueeze(1), params.place[k].unsqueeze(1)
        ((top, left, height, width),) = self.boxes(*numbers, (image.height, image.width)).tolist()
        part = image.crop((left, top, left + width, top + height))
        return np.asarray(part.resize((self.size, self.size), Resampling[self.mode.upper()]))

    def gather(self, images: Tensor, index: Tensor, params: Any) -> Tensor:
        """As `apply`, but (B, size, size, C), of images that have been cut."""
        return mirrored(images.index_select(0, index), params.flip)

    def gather_fixed(self, images: Tensor, index: Tensor, params: Any) -> Tensor:
        return mirrored_fixed(images.index_select(0, index), params.flip)


def mirrored(images: Tensor, flip: Tensor) -> Tensor:
    """(B, H, W, C), of which those that `flip` (B,) bool tells are changed in place."""
    turned = send(flip.nonzero().squeeze(1), images.device)
    images[turned] = images[turned].flip(2)
    return images


def mirrored_fixed(images: Tensor, flip: Tensor) -> Tensor:
    """As `mirrored`, for all images alike: `flip` is on their device."""
    return torch.where(flip[:, None, None, None], images.flip(2), images)


@dataclass(frozen=True)
class StrongViewParams:
    """Drawn numbers of strong views."""

    weak: WeakParams | CropParams | FileCropParams
    strong: StrongParams | FixedStrong
    erased: Erased


@dataclass(frozen=True)
class Strong:
    """Recipe of the strong view: a weak view of its own, then RandAugment, cutout and random erasing."""

    weak: Weak | Crop
    strong: StrongRecipe
    size: tuple[int, int]
    erase: Erase = NOTHING

    @classmethod
    def of(cls, config: StrongConfig, weak: Weak | Crop, size: tuple[int, int], erase: Erase = NOTHING) -> "Strong":
        cutout = min(size) // 2 if config.cutout is None else config.cutout
        recipe = StrongRecipe(
            config.num_ops, config.p_op, config.levels, cutout, tuple(config.fill), config.magnitude,
            config.magnitude_std,
        )  # fmt: skip
        draw_strong(recipe, Generator(), 1, size)  # refuses what does not fit the size
        return cls(weak, recipe, size, erase)

    def draw(self, generator: Generator, n: int) -> StrongViewParams:
        weak, strong = self.weak.draw(generator, n), draw_strong(self.strong, generator, n, self.size)
        return StrongViewParams(weak, strong, self.erase.draw(generator, n, self.size))

    def apply(self, images: Tensor, index: Tensor, params: StrongViewParams) -> Tensor:
        pixels = self.weak.gather(images, index, params.weak)  # type: ignore[arg-type]  # its own
        pixels = apply_strong(pixels, self.strong, params.strong)  # type: ignore[arg-type]
        self.erase.apply(pixels, params.erased)
        return pixels.permute(0, 3, 1, 2)

    def fixed(self, params: StrongViewParams) -> StrongViewParams:
        weak, strong = self.weak.fixed(params.weak), params.strong  # type: ignore[arg-type]
        strong = fixed(self.strong, strong, self.size)  # type: ignore[arg-type]
        return StrongViewParams(weak, strong, self.erase.fixed(params.erased))

    def apply_fixed(self, images: Tensor, index: Tensor, params: StrongViewParams) -> Tensor:
        pixels = self.weak.gather_fixed(images, index, params.weak)  # type: ignore[arg-type]
        pixels = apply_fixed(pixels, self.strong, params.strong)  # type: ignore[arg-type]
        self.erase.apply_fixed(pixels, params.erased)
        return pixels.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class CtaViewParams:
    """Drawn numbers of views by CTAugment."""

    weak: WeakParams | CropParams | FileCropParams
    policy: CtaParams


@dataclass(frozen=True)
class CtaView:
    """Recipe of a view by CTAugment: a weak view of its own, and what is to be done to it when a step is taken."""

    weak: Weak | Crop
    strong: StrongRecipe
    size: tuple[int, int]
    probe: bool

    @classmethod
    def of(cls, config: StrongConfig, weak: Weak | Crop, size: tuple[int, int], probe: bool) -> "CtaView":
        return cls(weak, Strong.of(config, weak, size).strong, size, probe)

    def draw(self, generator: Generator, n: int) -> CtaViewParams:
        return CtaViewParams(self.weak.draw(generator, n), draw_cta(self.strong, generator, n, self.size))

    def policy(self, params: CtaViewParams, fixed: bool) -> Policy:
        return Policy(params.policy, self.probe, fixed, self.strong.fill)

    def apply(self, images: Tensor, index: Tensor, params: CtaViewParams) -> Tensor:
        return self.weak.apply(images, index, params.weak)  # type: ignore[arg-type]  # its own

    def fixed(self, params: CtaViewParams) -> CtaViewParams:
        return CtaViewParams(self.weak.fixed(params.weak), params.policy)  # type: ignore[arg-type]

    def apply_fixed(self, images: Tensor, index: Tensor, params: CtaViewParams) -> Tensor:
        return self.weak.apply_fixed(images, index, params.weak)  # type: ignore[arg-type]


def _source(position: Tensor, shift: Tensor, size: int, reflect: bool) -> tuple[Tensor, Tensor]:
    """Source coordinates (B, size) of shifted output positions, and which of them lie inside the image."""
    at = position + shift[:, None]
    inside = (at >= 0) & (at < size)
    if reflect:
        at = at.abs()
        at = torch.where(at >= size, 2 * (size - 1) - at, at)
    return at.clamp(0, size - 1), inside
