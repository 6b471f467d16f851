"""An unlabeled pool from another source than the training images: a folder of images, or an .npz with `images`."""

from pathlib import Path

import numpy as np

from kdrun.core.errors import DataError
from kdrun.core.files import read_npz
from kdrun.data.images import decode, list_images, passed_over
from kdrun.data.sets.npz import as_images
from kdrun.data.types import Images
from kdrun.data.views.randaugment import LUMA

KEY = "dataset.unlabeled"


def read_unlabeled(given: str, height: int, width: int, channels: int) -> tuple[Images, list[str]]:
    """(M, height, width, channels) uint8: resized and cropped as the dataset's where they are image files; and what to
    say of them.

    Raises:
        DataError: absent, unreadable or empty; arrays of another shape than the training images.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if height != width:
            raise DataError(
                f"{KEY}: {path}: image files go with square images only, the dataset's are {height}x{width}"
            )
        passed: list[Path] = []
        images, unreadable = decode(list_images(path, KEY, passed), height)
        if unreadable:
            raise DataError(*(f"{KEY}: unreadable image {problem}" for problem in unreadable.values()))
        if channels == 1:
            images = as_gray(images)
        return images, passed_over(passed, path)
    content = read_npz(path, KEY)
    if "images" not in content:
        raise DataError(f"{KEY}: {path}: no array images (has {', '.join(content) or 'none'})")
    images = as_images(content["images"], f"{KEY}: {path}: images")
    if images.shape[1:] != (height, width, channels):
        raise DataError(
            f"{KEY}: {path}: images are {images.shape[1:]}, the training images {(height, width, channels)}"
        )
    return images, []


def as_gray(images: Images) -> Images:
    """(..., 3) -> (..., 1), as Pillow does it."""
    gray: Images = ((images @ np.array(LUMA) + 0x8000) >> 16).astype(np.uint8)[..., None]
    return gray
