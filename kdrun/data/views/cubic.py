"""Affine moves of images with Pillow's bicubic filter, bit for bit: four lines and four columns around each place.

As in Pillow (libImaging/Geometry.c) all is computed in double precision, in its order of operations; places outside of
the image take a color, and pixels that the filter asks for beyond a border are those at the border. Its cubic has the
slope (p[1] - p[-1]) at a pixel, Keys' a = -1.
"""

import torch
from torch import Tensor

VALUES = {"cpu": 1 << 18}  # computed at once: what stays in a core's cache, and on accelerators 2**24, 128 MB a tensor


def move(images: Tensor, maps: Tensor, color: Tensor, rows: int = 4, columns: int = 4) -> None:
    """In place.

    Args:
        images: (k, H, W, C) uint8, contiguous.
        maps: (6, k) float64, of `matrices`.
        color: (W * C,) uint8, of `row_of`.
        rows: 4, or 1 for maps that leave each pixel in its row, of which the filter is the pixel itself.
        columns: likewise.
    """
    at_once = max(VALUES.get(images.device.type, 1 << 24) // max(images[:1].numel(), 1), 1)
    for part, of_part in zip(images.split(at_once), maps.split(at_once, 1), strict=True):
        if len(part):
            part.copy_(_moved(part, of_part, color, rows, columns))


def _moved(images: Tensor, maps: Tensor, color: Tensor, rows: int, columns: int) -> Tensor:
    k, height, width, channels = images.shape
    device = images.device
    x0, xx, xy, y0, yx, yy = maps[:, :, None, None].unbind()
    x = torch.arange(width, device=device) + 0.5
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    from_x, from_y = xx * x + xy * y + x0, yx * x + yy * y + y0  # (k, H, W) float64
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    lines, down = _taps(from_y, rows, height, channels)
    places, right = _taps(from_x, columns, width, channels)
    first = torch.arange(k, device=device, dtype=torch.int32)[:, None, None] * height
    pixels, mixed = images.view(-1, channels), []
    for line in lines:
        start = (first + line) * width
        mixed.append(_cubic([pixels.index_select(0, (start + place).view(-1)).view(-1) for place in places], right))
    values = _cubic(mixed, down).clamp_(0, 255).to(torch.uint8)  # the fraction is cut off
    return torch.where(inside[..., None], values.view(images.shape), color.view(width, channels))


def _taps(place: Tensor, taps: int, side: int, channels: int) -> tuple[list[Tensor], Tensor]:
    """The pixels that are mixed, each (k, H, W) int32, and where between the inner two the place is, (k * H * W * C,).

    The latter for each channel, because operations on neighbors of three are slow.
    """
    place = place - 0.5
    before = place.floor()
    offsets = range(-1, 3) if taps == 4 else range(1)
    whole = before.int()
    way = (place - before).view(-1, 1).repeat(1, channels).view(-1)
    return [(whole + offset).clamp(0, side - 1) for offset in offsets], way


def _cubic(values: list[Tensor], way: Tensor) -> Tensor:
    """(n,) float64; Pillow's, step by step, but for signs."""
    if len(values) == 1:
        return values[0].double()
    v1, v2, v3, v4 = (value.double() for value in values)
    p2, p3, p4 = v3 - v1, (v1 - v2).mul_(2).add_(v3).sub_(v4), (v2 - v1).sub_(v3).add_(v4)
    return p4.mul_(way).add_(p3).mul_(way).add_(p2).mul_(way).add_(v2)
