"""Random erasing (Zhong et al. 2017, arXiv 1708.04896) as mmcls has it: a box of an image becomes noise.

mmcls 0.25.0, datasets/pipelines/transforms.py, RandomErasing, mode rand with a mean and a deviation: each value of the
box is drawn from a normal distribution, its fraction cut off, and limited to 0 to 255.

An image has one drawn number of 32 bits. A hash of it and of a value's position gives 16 bits, whose quantile is looked
up in a table of the distribution: whole numbers alone, so that all devices give the same bits, and the host draws six
numbers for an image, not one for each of its values.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Generator, Tensor

from kdrun.core.device import send
from kdrun.data.views.box import in_box

AREA = (0.02, 1 / 3)
RATIO = (3 / 10, 10 / 3)
BITS = 16
AT_ONCE = 256  # images: 150 MB a tensor of int32 at 224 pixels


@dataclass(frozen=True)
class Erased:
    """Drawn numbers of `n` images."""

    box: Tensor
    """(n, 4) int64: top, bottom, left, right in pixels, the second and last excluded; empty: nothing is erased."""
    number: Tensor
    """(n,) int32, what the noise is made from."""
    table: Tensor
    """(C * 2**BITS,) uint8 of `quantiles` for `Erase.apply_fixed`; of what was drawn: (n, 0)."""


@dataclass(frozen=True)
class Erase:
    """Recipe: how probable it is, and the noise."""

    probability: float = 0.0
    mean: tuple[float, ...] = (0.5,)
    """Of each channel, of pixels in [0, 1]."""
    std: tuple[float, ...] = (0.5,)

    def draw(self, generator: Generator, n: int, size: tuple[int, int]) -> Erased:
        """For images of `size` (height, width). A recipe that erases nothing draws nothing."""
        none = torch.zeros(n, 0, dtype=torch.uint8)
        if not self.probability:
            return Erased(torch.zeros(n, 4, dtype=torch.int64), torch.zeros(n, dtype=torch.int32), none)
        coin, area, shape, down, right, number = torch.rand(n, 6, generator=generator, dtype=torch.float64).unbind(1)
        height, width = size
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        low, high = map(math.log, RATIO)
        shape = (low + (high - low) * shape).exp()
        edges = []
        for side, length, place in (((area * shape).sqrt(), height, down), ((area / shape).sqrt(), width, right)):
            side = side.round().clamp(max=length)
            first = (place * (length - side)).floor()  # as theirs, never at the far border if there is room
            edges += [first, first + side]
        box = torch.stack(edges, 1).long()
        box[coin >= self.probability] = 0
        return Erased(box, ((number - 0.5) * 2**32).floor().int(), none)

    def apply(self, images: Tensor, params: Erased) -> None:
        """In place; the host knows which images are erased.

        Args:
            images: (B, H, W, C) uint8, contiguous.
            params: on the CPU.
        """
        chosen = (params.box[:, 1] > params.box[:, 0]).nonzero().squeeze(1)
        if not len(chosen):
            return
        box, number, table = params.box[chosen], params.number[chosen], quantiles(self.mean, self.std)
        if images.device.type == "cpu":
            position = hashed(_positions(images))
            for k, (top, bottom, left, right), key in zip(chosen.tolist(), box.tolist(), number, strict=True):
                place = slice(top, bottom), slice(left, right)
                images[k][place] = _noise(position[place], key, table)
        else:
            where, box, number, table = (send(tensor, images.device) for tensor in (chosen, box, number, table))
            images.index_copy_(0, where, _erased(images[where], box, number, table))

    def fixed(self, params: Erased) -> Erased:
        return replace(params, table=quantiles(self.mean, self.std)) if self.probability else params

    def apply_fixed(self, images: Tensor, params: Erased) -> None:
        """As `apply`, the same on all images whatever was drawn; parameters on the device of the images."""
        if self.probability:
            images.copy_(_erased(images, params.box, params.number, params.table))


NOTHING = Erase()


@cache
def quantiles(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(C * 2**BITS,) uint8: the values of the noise at the middles of equal shares of probability."""
    share = (torch.arange(1 << BITS, dtype=torch.float64) + 0.5) / (1 << BITS)
    center, spread = (255 * torch.tensor(values, dtype=torch.float64)[:, None] for values in (mean, std))
    values: Tensor = center + spread * torch.special.ndtri(share)
    return values.trunc().clamp(0, 255).to(torch.uint8).view(-1)


def _erased(images: Tensor, box: Tensor, number: Tensor, table: Tensor) -> Tensor:
    parts = zip(images.split(AT_ONCE), box.split(AT_ONCE), number.split(AT_ONCE), strict=True)
    return torch.cat([_part(*part, table) for part in parts])


def _part(images: Tensor, box: Tensor, number: Tensor, table: Tensor) -> Tensor:
    noise = _noise(hashed(_positions(images)), number[:, None, None, None], table)
    return torch.where(in_box(box, *images.shape[1:3])[..., None], noise, images)


def _positions(images: Tensor) -> Tensor:
    """(H, W, C) int32."""
    shape = images.shape[1:]
    return torch.arange(shape.numel(), dtype=torch.int32, device=images.device).view(shape)


def _noise(position: Tensor, number: Tensor, table: Tensor) -> Tensor:
    """uint8 in the shape of hashed positions (..., C) and numbers together."""
    key = hashed(position ^ number) & ((1 << BITS) - 1)
    key += torch.arange(position.shape[-1], dtype=torch.int32, device=position.device) * (1 << BITS)
    return table.index_select(0, key.view(-1)).view(key.shape)


def hashed(value: Tensor) -> Tensor:
    """int32 -> int32, one to one: shifts and products after one another, such that each bit depends on all bits.

    The constants are those of Wellons, "Prospecting for hash functions", 2018 (lowbias32).
    """
    value = (value ^ (value >> 16 & 0xFFFF)) * 0x7FEB352D
    value = (value ^ (value >> 15 & 0x1FFFF)) * (0x846CA68B - (1 << 32))
    return value ^ (value >> 16 & 0xFFFF)
