"""Augmented views beside Pillow's and torchvision's."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from torchvision import transforms

from kdrun.config.views import StrongConfig
from kdrun.data.views.recipes import Strong, Weak
from kdrun.data.views.view import Recipe
from scripts.bench.harness import report, rounds


def bench_views() -> None:
    """Views of 32 px images on one thread, per second of CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.from_numpy(real_crops(50_000))
    generator = torch.Generator().manual_seed(0)

    def make(recipe: Recipe, n: int) -> None:
        index = torch.randint(0, 50_000, (n,))
        recipe.apply(images, index, recipe.draw(generator, n))

    def rates(batch: Callable[[], None], n: int, times: int = 0) -> list[float]:
        out = []
        for _ in range(times or rounds()):
            started = time.process_time()
            for _ in range(max(4096 // n, 1)):
                batch()
            out.append(max(4096 // n, 1) * n / (time.process_time() - started))
        return out

    for n in (64, 448):
        for reflect in (False, True):
            recipe = Weak(4, reflect, True)
            name = f"weak views, batch {n}, {'reflect' if reflect else 'zero'} padding"
            report(name, rates(lambda recipe=recipe, n=n: make(recipe, n), n), "images/s")  # type: ignore[misc]
    weak = Weak(4, True, True)
    for levels, more in (("official", {}), ("kekmodel", {}), ("usb", {"num_ops": 3, "p_op": 1.0, "cutout": 0.5})):
        strong = Strong.of(StrongConfig(levels=levels, **more), weak, (32, 32))  # type: ignore[arg-type]
        report(f"strong views, batch 448, {levels}", rates(lambda s=strong: make(s, 448), 448), "images/s")  # type: ignore[misc]

        def step(strong: Strong = strong) -> None:
            make(weak, 64)
            make(weak, 448)
            make(strong, 448)

        report(f"  a FixMatch step's 960 views, {levels}", rates(step, 960), "images/s")

    strong = Strong.of(StrongConfig(), weak, (32, 32))
    pil = pillow_pipeline()

    def pillow() -> None:
        torch.stack([pil(Image.fromarray(images[k].numpy())) for k in np.random.randint(0, len(images), 448)])

    pairs = [(rates(lambda: make(strong, 448), 448, 1)[0], rates(pillow, 448, 1)[0]) for _ in range(rounds())]
    report("strong views, one image at a time with Pillow and torchvision", [b for _, b in pairs], "images/s")
    report("  kdrun's / these, official", [a / b for a, b in pairs], "")
    torch.set_num_threads(threads)


def real_crops(count: int) -> np.ndarray:
    """(count, 32, 32, 3) uint8, of the two photos that come with scikit-learn."""
    rng, photos, out = np.random.default_rng(0), load_sample_images().images, []
    for k in range(count):
        photo = photos[k % 2]
        y, x = rng.integers(0, photo.shape[0] - 32), rng.integers(0, photo.shape[1] - 32)
        out.append(photo[y : y + 32, x : x + 32])
    return np.stack(out)


def pillow_pipeline() -> Callable[[Any], torch.Tensor]:
    """What FixMatch's ports do to an image: mirror, crop, RandAugment, cutout, to a tensor, normalise."""

    def cutout(image: Any) -> Any:
        x, y = (int(v) for v in np.random.uniform(-8, 24, 2))
        ImageDraw.Draw(image).rectangle((max(x, 0), max(y, 0), x + 16, y + 16), (127, 127, 127))
        return image

    return transforms.Compose([
        transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
        transforms.RandAugment(num_ops=1),  # always applied: as many as two with probability 1/2
        cutout, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
