"""What networks see of an image in an evaluation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from kdrun.config.views import ViewsConfig
from kdrun.data.views.resample import resize

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Center:
    """What evaluation shows of large images: a center square, resized."""

    size: int
    ratio: float
    """Side of the square, as a share of the image's short side."""
    mode: str

    @classmethod
    def of(cls, config: ViewsConfig, size: tuple[int, int]) -> "Center | None":
        """None: the images as they are."""
        if config.weak.scale is None:
            return None
        return cls(config.size or min(size), config.eval_ratio, config.weak.interpolation)

    def cut(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, size, size, C) uint8."""
        height, width = images.shape[1:3]
        side = max(round(self.ratio * min(height, width)), 1)
        top, left = round((height - side) / 2), round((width - side) / 2)
        return resize(images[:, top : top + side, left : left + side], self.size, self.mode).contiguous()
