"""The operations of RandAugment, and how far they go by the rules of public programs; see `randaugment`."""

from enum import IntEnum
from functools import cache

import torch
from torch import Tensor


class Op(IntEnum):
    """The operations, ordered so that those computed together are neighbors. In brackets: what `value` means."""

    IDENTITY = 0
    ROTATE = 1  # [degrees, counterclockwise]
    SHEAR_X = 2  # [pixels per row]
    SHEAR_Y = 3
    TRANSLATE_X = 4  # [pixels]
    TRANSLATE_Y = 5
    BRIGHTNESS = 6  # [factor, 1 leaves the image as it is; also of the next three]
    CONTRAST = 7
    COLOR = 8
    SHARPNESS = 9
    POSTERIZE = 10  # [bits kept]
    SOLARIZE = 11  # [pixels from this value on are inverted]
    AUTOCONTRAST = 12  # [unused]
    EQUALIZE = 13
    INVERT = 14  # [unused]
    SOLARIZE_ADD = 15  # [what is added to pixels below 128]


USB_RANGES = {
    Op.ROTATE: (-30, 30), Op.SHEAR_X: (-0.3, 0.3), Op.SHEAR_Y: (-0.3, 0.3), Op.TRANSLATE_X: (-0.3, 0.3),
    Op.TRANSLATE_Y: (-0.3, 0.3), Op.BRIGHTNESS: (0.05, 0.95), Op.CONTRAST: (0.05, 0.95), Op.COLOR: (0.05, 0.95),
    Op.SHARPNESS: (0.05, 0.95), Op.POSTERIZE: (4, 8), Op.SOLARIZE: (0, 256),
}  # fmt: skip
TIMM_REACH = {
    Op.ROTATE: 30, Op.SHEAR_X: 0.3, Op.SHEAR_Y: 0.3, Op.TRANSLATE_X: 0.45, Op.TRANSLATE_Y: 0.45, Op.BRIGHTNESS: 0.9,
    Op.CONTRAST: 0.9, Op.COLOR: 0.9, Op.SHARPNESS: 0.9, Op.POSTERIZE: 4, Op.SOLARIZE: 256, Op.SOLARIZE_ADD: 110,
}  # fmt: skip
COUNTS = {"official": 14, "imagenet": 16, "kekmodel": 14, "usb": 14, "timm": 15}
"""Whose rules -> how many of the operations, from the first on, are drawn; of timm from the second on."""
OUTSIDE = {"official": 0, "imagenet": 128, "kekmodel": 0, "usb": 0}
"""What comes in from outside of an image; of timm the color of `views.strong.fill`."""


@cache
def discrete_values(levels: str, height: int, width: int) -> Tensor:
    """(ops, levels) float64: the value of each operation at levels 1 to 9 (imagenet: 0 to 10), without its sign."""
    if levels == "imagenet":
        return torch.tensor([_of_imagenet(level / 10) for level in range(11)], dtype=torch.float64).T
    official, columns = levels == "official", []
    for level in range(1, 10):
        share = level * 0.3 / 10
        factor = level * 1.8 / 10 + 0.1 if official else level * 0.9 / 10 + 0.05
        shift = (level, level) if official else (int(share * width), int(share * height))
        bits = 4 - level * 4 // 10 if official else 4 + level * 4 // 10
        # in the order of Op
        geometry, enhance = [level * 30 // 10, share, share, *shift], [factor] * 4
        columns.append([0, *geometry, *enhance, bits, 256 - level * 256 // 10, 0, 0])
    return torch.tensor(columns, dtype=torch.float64).T


@cache
def usb_ranges(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of each operation, (14,) float64 each."""
    low, high = torch.tensor([USB_RANGES.get(op, (0, 0)) for op in Op], dtype=torch.float64).unbind(1)
    pixels = torch.ones(len(Op), dtype=torch.float64)
    pixels[Op.TRANSLATE_X], pixels[Op.TRANSLATE_Y] = width, height
    return low * pixels, high * pixels


def timm_values(op: Tensor, magnitude: Tensor, negative: Tensor, height: int, width: int) -> Tensor:
    """What operations take by the rules of timm's increasing set, float64 in the shape of `op`.

    Args:
        magnitude: float64, 0 to 10.
        negative: bool, whether the operation goes the other way, if it has two.
    """
    reach = torch.tensor([TIMM_REACH.get(op, 0) for op in Op], dtype=torch.float64)
    side = torch.ones(len(Op), dtype=torch.float64)
    side[Op.TRANSLATE_X], side[Op.TRANSLATE_Y] = width, height
    far = magnitude / 10 * reach[op] * side[op]
    signed = torch.where(negative, -far, far)
    value = torch.where(op <= Op.SHARPNESS, (1 + signed).clamp(min=0.1), far)
    value = torch.where(op <= Op.TRANSLATE_Y, signed, value)
    value = torch.where(op == Op.POSTERIZE, 4 - far.floor(), value)
    value = torch.where(op == Op.SOLARIZE, 256 - far.floor(), value)
    return torch.where(op == Op.SOLARIZE_ADD, far.floor(), value)


def _of_imagenet(level: float) -> list[float]:
    """In the order of `Op`. TensorFlow shifts 8 bits by 7 at most, and its uint8 holds no threshold of 256."""
    geometry, enhance = [level * 30, level * 0.3, level * 0.3, level * 100, level * 100], [level * 1.8 + 0.1] * 4
    bits, threshold = max(int(level * 4), 1), min(int(level * 256), 255)
    return [0, *geometry, *enhance, bits, threshold, 0, 0, 0, int(level * 110)]
