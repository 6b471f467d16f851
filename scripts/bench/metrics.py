"""Metrics beside the evaluation that they are of."""

import time
from typing import Any

import torch

from kdrun.config.model import ModelConfig
from kdrun.data.views.view import View
from kdrun.models.network import build_network
from kdrun.training.evaluator import Evaluator
from scripts.bench.harness import report, rounds


def bench_metrics(images: int = 10_000) -> None:
    """The closed-form metrics of an evaluation, beside the networks' pass in it: resnet20, 100 classes, 32 px."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain: dict[str, Any] = {"num_classes": 100, "in_chans": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    network = build_network(ModelConfig(name="resnet20"), seed=0, **plain).to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
    index, target = torch.arange(images), torch.randint(0, 100, (images,), generator=generator)
    evaluator = Evaluator({"test": (pixels.to(device), index.to(device), target.to(device))}, 1000)
    network.eval()

    def asked(view: View) -> dict[str, torch.Tensor]:
        return {"student": network(view).logits}

    def seconds() -> tuple[float, float]:
        started = time.perf_counter()
        logits = evaluator.logits(asked)
        if device.type == "cuda":
            torch.cuda.synchronize()
        middle = time.perf_counter()
        evaluator.metrics(logits)  # ends with its numbers on the host
        return middle - started, time.perf_counter() - middle

    seconds()
    pairs = [seconds() for _ in range(rounds())]
    report(f"evaluation of resnet20 on {images:,} images: the network", [1e3 * a for a, _ in pairs], "ms")
    report("  its metrics", [1e3 * b for _, b in pairs], "ms")
    report("  metrics / evaluation", [100 * b / (a + b) for a, b in pairs], "%")
