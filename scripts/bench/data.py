"""Packed and streamed images beside decoding and a bare DataLoader."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from kdrun.config.compose import Composer
from kdrun.config.run import RunConfig
from kdrun.data.views.view import rows
from kdrun.training.assembly import Assembly
from scripts.bench.harness import CPU, LoopBench, report, report_pairs, rounds, seconds_of


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


BATCH, WORKERS = 32, 2


def bench_data(images: int = 192) -> None:
    """Packed images beside decoding, streamed ones beside a bare DataLoader, the loop with packed images of 64 px."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        write_photos(tree, images)
        chosen = ["dataset=imagefolder", f"dataset.path={tree}", "dataset.val_fraction=0"]
        with Composer() as composer:
            packed, streamed = (
                composer.typed([
                    *chosen, "dataset.pack.size=256", "views=imagenet", "method=supervised", "teacher=none",
                    f"dataset.stream={stream}", f"schedule.batch_size={BATCH}", f"execution.workers={WORKERS}",
                    f"execution.outputs={folder}/outputs",
                ])
                for stream in ("false", "true")
            )  # fmt: skip
        compare_decoding(packed, streamed, images)
        compare_streaming(streamed, tree, images)
        compare_packed_loop([*chosen, "dataset.pack.size=64", "method=supervised", "teacher=none"])


def compare_decoding(packed: RunConfig, streamed: RunConfig, images: int) -> None:
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    sources = [Assembly.of(config, CPU).images[0] for config in (packed, streamed)]
    times = [
        [seconds_of(lambda source=source: [rows(source, at, CPU) for at in order.split(BATCH)], 1)
         for source in sources]
        for _ in range(rounds())
    ]  # fmt: skip
    report("decoding 500x375 -> 256 px, all cores", [images / b for _, b in times], "images/s")
    report("  packed, in random order", [images / a for a, _ in times], "images/s")
    report("  packed / decoding", [b / a for a, b in times], "")


def compare_streaming(streamed: RunConfig, tree: Path, images: int) -> None:
    bare_set = datasets.ImageFolder(
        str(tree / "train"), transforms.Compose([transforms.RandomResizedCrop(224), transforms.PILToTensor()])
    )

    def ours(total: int) -> float:
        schedule = streamed.schedule.replace(steps=total, epochs=None)
        loader = Assembly.of(streamed.replace(schedule=schedule), CPU).loader
        return seconds_a_batch(map(loader.batch, range(total)), loader.close)

    def bare(total: int) -> float:
        order = torch.randint(images, (total * BATCH,)).tolist()
        return seconds_a_batch(iter(DataLoader(bare_set, BATCH, sampler=order, num_workers=WORKERS)), lambda: None)

    total = 4 * (images // BATCH)
    pairs = [(ours(total), bare(total)) for _ in range(rounds())]
    report(f"bare DataLoader, crops of 224 px, {WORKERS} workers", [BATCH / b for _, b in pairs], "images/s")
    report("  streamed", [BATCH / a for a, _ in pairs], "images/s")
    report("  streamed / bare DataLoader, seconds", [a / b for a, b in pairs], "")


def seconds_a_batch(batches: Iterator[Any], close: Callable[[], None]) -> float:
    """Once workers are there."""
    next(batches)
    started, count = time.perf_counter(), 0
    for _ in batches:
        count += 1
    took = (time.perf_counter() - started) / count
    close()
    return took


def compare_packed_loop(data: list[str]) -> None:
    network = ["student=timm", "student.name=resnet18", f"schedule.batch_size={BATCH}", "schedule.lr=0.01"]
    bench = LoopBench(*network, steps=6, data=data)
    tensor, wanted = torch.randn(BATCH, 3, 64, 64).to(memory_format=torch.channels_last), torch.arange(BATCH) % 2

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
