"""Boxes in images."""

import torch
from torch import Tensor


def in_box(box: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool: which pixels lie in each image's box.

    Args:
        box: (B, 4) top, bottom, left and right in pixels, the second and last excluded.
    """
    row, column = (torch.arange(side, device=box.device) for side in (height, width))
    top, bottom, left, right = box[:, :, None].unbind(1)
    return ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]
