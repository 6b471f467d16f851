"""Boxes of images, each resized to the same size: bilinear or bicubic, antialiased, as torchvision does one by one.

On a CPU the kernel is that of torchvision.transforms.v2 for uint8, box by box; Pillow's values differ by 1 at most,
those of bicubic at hard edges by up to 3. On an accelerator all boxes go through two products with matrices of weights,
(size, height) and (size, width) for each image, in float32. That rounds once, as torchvision's first transforms do, and
not after either direction: where they differ from the kernel, it is by 1, of bicubic at hard edges by up to 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.core.device import send

CHUNK = 256  # images at once on an accelerator: their pixels as float32 take 200 MB at 256x256


def resize_boxes(images: Tensor, box: Tensor, size: int, mode: str, alike: bool = False) -> Tensor:
    """(B, H, W, C) uint8 -> (B, size, size, C) uint8.

    Args:
        box: (B, 4) int64 on the CPU, or on the device of the images: top, left, height and width.
        mode: bilinear or bicubic.
        alike: on a CPU too as on an accelerator, where the host does not look at the boxes.
    """
    if images.device.type == "cpu" and not alike:
        out = images.new_empty((len(images), size, size, images.shape[3]))
        for row, image, (top, left, height, width) in zip(out, images, box.tolist(), strict=True):
            row.copy_(resize(image[None, top : top + height, left : left + width], size, mode)[0])
        return out
    place = send(box, images.device)
    parts = zip(images.split(CHUNK), place.split(CHUNK), strict=True)
    return torch.cat([resize_by_matrices(some, at, size, mode) for some, at in parts])


def resize(images: Tensor, size: int, mode: str) -> Tensor:
    """Whole images, (B, H, W, C) uint8 -> (B, size, size, C) uint8."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = images.permute(0, 3, 1, 2)
    if images.device.type == "cpu":
        return F.interpolate(pixels, (size, size), mode=mode, antialias=True).permute(0, 2, 3, 1)
    return _to_uint8(F.interpolate(pixels.float(), (size, size), mode=mode, antialias=True)).permute(0, 2, 3, 1)


def resize_by_matrices(images: Tensor, box: Tensor, size: int, mode: str) -> Tensor:
    """As `resize_boxes`, by two matrix products; the box is on the device of the images."""
    n, height, width, channels = images.shape
    rows = weights(box[:, 0], box[:, 2], height, size, mode)
    columns = weights(box[:, 1], box[:, 3], width, size, mode)
    tall = rows @ images.float().view(n, height, width * channels)  # (B, size, W C)
    tall = tall.view(n, size, width, channels).transpose(1, 2).reshape(n, width, size * channels)
    return _to_uint8((columns @ tall).view(n, size, size, channels).transpose(1, 2))


def weights(start: Tensor, length: Tensor, side: int, size: int, mode: str) -> Tensor:
    """(B, size, side) float32: what each source pixel adds to each output pixel; rows add up to 1.

    Pixels outside the box [start, start + length) count for nothing, as if it had been cut out before.
    """
    scale = (length / size)[:, None, None]
    wide = scale.clamp(min=1)  # the filter is widened where the image shrinks: that is the antialiasing
    pixel = torch.arange(side, device=start.device) - start[:, None, None]  # counted from the box's edge
    center = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    away = ((pixel + 0.5 - center) / wide).abs()
    if mode == "bilinear":
        weight = (1 - away).clamp(min=0)
    else:  # Keys' cubic, a = -1/2
        near, far = (1.5 * away - 2.5) * away**2 + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2
        weight = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    weight = weight * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def _to_uint8(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)
