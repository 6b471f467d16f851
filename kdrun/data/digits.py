"""Handwritten digits, 8x8 pixels, 1,797 images: scikit-learn's copy of the UCI set (Alpaydin and Kaynak, 1998).

Comes with scikit-learn, needs no download. The set has no official test part: kdrun takes the last 400 images in file
order, which other hands wrote than most of the training images, so the test asks for more than memory of a writer.
"""

import numpy as np

from kdrun.config import DatasetConfig
from kdrun.data.dataset import Arrays, channel_statistics
from kdrun.registry import register

NUM_TEST = 400


@register("dataset", "digits")
class Digits:
    class Config(DatasetConfig):
        mirror: bool = False

    @staticmethod
    def load(config: Config) -> Arrays:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        labels = labels.astype(np.int64)
        mean, std = channel_statistics(pixels[:-NUM_TEST])
        return Arrays(
            pixels[:-NUM_TEST], labels[:-NUM_TEST], pixels[-NUM_TEST:], labels[-NUM_TEST:],
            class_names=tuple("0123456789"), mean=mean, std=std,
        )  # fmt: skip
