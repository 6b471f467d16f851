"""The peers' way to their images: one at a time, through Pillow, in the workers of a DataLoader. See `peers`."""

import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Pictures(Dataset[Any]):
    """One image at a time, through Pillow (PEERS_KD.md 4: "per-sample PIL crops"; PEERS_SSL.md 1: "per-image PIL").

    With `negatives`, the rows of that many images of other classes beside each: RepDistiller, dataset/cifar100.py,
    draws them for each image in the worker, without replacement where a class has enough others.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Any], Any], negatives: int = 0
    ) -> None:  # fmt: skip
        self.images, self.labels, self.transform = images, labels, transform
        self.negatives = negatives
        self.others = [np.flatnonzero(labels != k) for k in range(labels.max() + 1)] if negatives else []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image, label = self.transform(Image.fromarray(self.images[index])), int(self.labels[index])
        if not self.negatives:
            return image, label, index
        others = self.others[label]
        drawn = np.random.choice(others, self.negatives, replace=len(others) < self.negatives)
        return image, label, index, np.concatenate([[index], drawn])


def workers(asked: int) -> int:
    """The peers' default, but no more than there are cores."""
    return min(asked, os.cpu_count() or 1)


def batches(dataset: Dataset[Any], size: int, steps: int, asked: int, pin: bool = False) -> Iterator[Any]:
    """Of a DataLoader that does not run dry before the clock has stopped; its first batch is there already.

    No pin_memory unless said and no persistent workers (PEERS_KD.md 4, mdistiller dataset/cifar100.py:151;
    PEERS_SSL.md 1, row "pin_memory / persistent workers").
    """
    count = workers(asked)
    sampler = RandomSampler(dataset, num_samples=size * (steps + 2 * count + 2))  # type: ignore[arg-type]
    pin = pin and torch.cuda.is_available()
    drawn = iter(DataLoader(dataset, size, sampler=sampler, num_workers=count, drop_last=True, pin_memory=pin))
    return chain([next(drawn)], drawn)


def small_images(side: int) -> Callable[[Any], Any]:
    """Crop, mirror, to a tensor, normalise (RepDistiller and mdistiller, dataset/cifar100.py)."""
    return transforms.Compose([
        transforms.RandomCrop(side, padding=side // 8), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip


def large_images(side: int, scale: tuple[float, float] = (0.08, 1.0), normalise: bool = True) -> Callable[[Any], Any]:
    """Boxes of random area (mdistiller, dataset/imagenet.py), of arrays: no JPEG is decoded, which they pay for."""
    steps: list[Any] = [transforms.RandomResizedCrop(side, scale=scale), transforms.RandomHorizontalFlip()]
    steps.append(transforms.ToTensor())
    if normalise:
        steps.append(transforms.Normalize(MEAN, STD))
    return transforms.Compose(steps)


def _signed(value: float) -> float:
    return -value if np.random.random() < 0.5 else value


def _shear_y(image: Any, share: float) -> Any:
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, _signed(share), 1, 0))


def _shear_x(image: Any, share: float) -> Any:
    return image.transform(image.size, Image.Transform.AFFINE, (1, _signed(share), 0, 0, 1, 0))


def _shift_x(image: Any, share: float) -> Any:
    by = _signed(int(share * image.width))
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, by, 0, 1, 0))


def _shift_y(image: Any, share: float) -> Any:
    by = _signed(int(share * image.height))
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, by))


OPERATIONS: tuple[Callable[[Any, int], Any], ...] = (
    lambda image, level: image,
    lambda image, level: image.rotate(_signed(level * 3)),
    lambda image, level: _shear_x(image, 0.03 * level),
    lambda image, level: _shear_y(image, 0.03 * level),
    lambda image, level: _shift_x(image, 0.03 * level),
    lambda image, level: _shift_y(image, 0.03 * level),
    lambda image, level: ImageEnhance.Brightness(image).enhance(0.05 + 0.09 * level),
    lambda image, level: ImageEnhance.Contrast(image).enhance(0.05 + 0.09 * level),
    lambda image, level: ImageEnhance.Color(image).enhance(0.05 + 0.09 * level),
    lambda image, level: ImageEnhance.Sharpness(image).enhance(0.05 + 0.09 * level),
    lambda image, level: ImageOps.posterize(image, 4 + level * 4 // 10),
    lambda image, level: ImageOps.solarize(image, 256 - level * 256 // 10),
    lambda image, level: ImageOps.autocontrast(image),
    lambda image, level: ImageOps.equalize(image),
)
"""Those of `kdrun.data.views.randaugment.Op` in its order, levels 1 to 9 by kekmodel's rules, on one Pillow image."""


def augmented(image: Any) -> Any:
    """Two operations, each applied with probability 1/2, and a gray square (PEERS_SSL.md 2, column kekmodel)."""
    for k in np.random.randint(0, len(OPERATIONS), 2):
        if np.random.random() < 0.5:
            image = OPERATIONS[k](image, int(np.random.randint(1, 10)))
    width, height = image.size
    half = width // 4
    x, y = (int(np.random.uniform(0, side)) for side in (width, height))
    box = (max(x - half, 0), max(y - half, 0), min(x + half, width), min(y + half, height))
    image = image.copy()
    ImageDraw.Draw(image).rectangle(box, (127, 127, 127))
    return image


class WeakAndStrong:
    """Both views of one image, each through Pillow (kekmodel, dataset/cifar.py; PEERS_SSL.md 4.2)."""

    def __init__(self, side: int) -> None:
        moved = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(side, side // 8, padding_mode="reflect")]
        self.moved = transforms.Compose(moved)
        self.finished = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def weak(self, image: Any) -> Any:
        return self.finished(self.moved(image))

    def __call__(self, image: Any) -> Any:
        return self.weak(image), self.finished(augmented(self.moved(image)))
