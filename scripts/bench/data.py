"""Packed and streamed images beside decoding and a bare DataLoader."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from kdrun.config.compose import Composer
from kdrun.data.views.view import rows
from kdrun.training.assembly import Assembly
from scripts.bench.harness import CPU, ROUNDS, LoopBench, report, report_pairs, seconds_of


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of 500x375 pixels in two classes, with the edges and the noise that make decoding work."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:375, :500]
    for split, number in (("train", count), ("test", 2)):
        for k in range(number):
            wave = 127 + 90 * np.sin(rng.uniform(0, 6, 3) + (y[..., None] * rng.uniform(1, 9) + x[..., None]) / 40)
            wave[100:200, 50:300] = rng.integers(0, 256, 3)
            path = folder / split / f"class{k % 2}" / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(wave + rng.normal(0, 12, wave.shape), 0, 255).astype(np.uint8)).save(path)


def bench_data(images: int = 192) -> None:
    """Packed images beside decoding, streamed ones beside a bare DataLoader, the loop with packed images of 64 px."""
    batch, workers = 32, 2
    with tempfile.TemporaryDirectory() as folder:
        tree, outputs = Path(folder) / "tree", Path(folder) / "outputs"
        write_photos(tree, images)
        given = ["dataset=imagefolder", f"dataset.path={tree}", "dataset.val_fraction=0", "dataset.pack.size=256"]
        with Composer() as composer:
            packed, streamed = (
                composer.typed([
                    *given, "views=imagenet", "method=supervised", "teacher=none", f"dataset.stream={stream}",
                    f"schedule.batch_size={batch}", f"execution.outputs={outputs}", f"execution.workers={workers}",
                ])
                for stream in ("false", "true")
            )  # fmt: skip
        order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
        pixels, files = (Assembly.of(config, CPU).images[0] for config in (packed, streamed))
        times = [
            [seconds_of(lambda source=source: [rows(source, at, CPU) for at in order.split(batch)], 1)
             for source in (pixels, files)]
            for _ in range(ROUNDS)
        ]  # fmt: skip
        report("decoding 500x375 -> 256 px, all cores", [images / b for _, b in times], "images/s")
        report("  packed, in random order", [images / a for a, _ in times], "images/s")
        report("  packed / decoding", [b / a for a, b in times], "")

        steps = images // batch

        def ours(total: int) -> float:
            schedule = streamed.schedule.replace(steps=total, epochs=None)
            loader = Assembly.of(streamed.replace(schedule=schedule), CPU).loader
            return timed(map(loader.batch, range(total)), loader.close)

        bare_set = datasets.ImageFolder(
            str(tree / "train"), transforms.Compose([transforms.RandomResizedCrop(224), transforms.PILToTensor()])
        )

        def bare(total: int) -> float:
            loader = DataLoader(
                bare_set, batch, sampler=torch.randint(images, (total * batch,)).tolist(), num_workers=workers
            )
            return timed(iter(loader), lambda: None)

        def timed(batches: Any, close: Callable[[], None]) -> float:
            """Seconds a batch, once workers are there."""
            next(batches)
            started, count = time.perf_counter(), 0
            for _ in batches:
                count += 1
            took = (time.perf_counter() - started) / count
            close()
            return took

        pairs = [(ours(4 * steps), bare(4 * steps)) for _ in range(ROUNDS)]
        report(f"bare DataLoader, crops of 224 px, {workers} workers", [batch / b for _, b in pairs], "images/s")
        report("  streamed", [batch / a for a, _ in pairs], "images/s")
        report("  streamed / bare DataLoader, seconds", [a / b for a, b in pairs], "")

        small = [*given[:3], "dataset.pack.size=64", "method=supervised", "teacher=none"]
        bench = LoopBench(
            "student=timm",
            "student.name=resnet18",
            f"schedule.batch_size={batch}",
            "schedule.lr=0.01",
            steps=6,
            data=small,
        )
        tensor, wanted = torch.randn(batch, 3, 64, 64).to(memory_format=torch.channels_last), torch.arange(batch) % 2

        def bare_step() -> float:
            student = bench.network(bench.config.students[0])
            optimizer = bench.optimizer(student)
            started = time.perf_counter()
            for _ in range(bench.steps):
                loss = F.cross_entropy(student(tensor), wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            return (time.perf_counter() - started) / bench.steps

        report_pairs("resnet18, packed images of 64 px, batch 32", bench.seconds, bare_step)
