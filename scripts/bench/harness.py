"""What the benchmarks share: rounds, how figures are printed, and kdrun's loop on data that is made for it."""

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.teachers.teacher import Teacher
from kdrun.training.assembly import Assembly
from kdrun.training.evaluator import Evaluator
from kdrun.training.loop import Loop
from kdrun.training.tracking import Tracker

ROUNDS = 5
CPU = torch.device("cpu")


def report(what: str, values: list[float], unit: str) -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{what:<62} {low:>10,.4g} {middle:>10,.4g} {high:>10,.4g}  {unit}", flush=True)


def seconds_of(call: Callable[[], Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


class LoopBench:
    """kdrun's loop on random images of CIFAR's size, put together as a run is, from overrides.

    Args:
        data: other images: overrides of `dataset`.
    """

    def __init__(self, *overrides: str, steps: int, data: Sequence[str] = ()) -> None:
        self.steps = steps
        self._folder = tempfile.TemporaryDirectory()
        data = data or write_random_images(Path(self._folder.name) / "d.npz", 5000, 32)
        with Composer() as composer:
            self.config = composer.typed([
                *data, "tracker=none", f"schedule.steps={steps}", f"execution.outputs={self._folder.name}",
                "schedule.eval_every_steps=null", "execution.progress=false", "dataset.val_fraction=0", *overrides,
            ])  # fmt: skip
        self.teacher: Teacher | None = None
        self.parts = Assembly.of(self.config, CPU)

    def network(self, model: ModelConfig) -> torch.nn.Module:
        """A new one without its input adapter, for training."""
        return self.parts.factory.network(model, 0).net.to(memory_format=torch.channels_last).train()  # type: ignore[no-any-return]

    def give_teacher(self) -> torch.nn.Module:
        """Let `teacher` of the config be a network that nobody trained. Returns it without its input adapter."""
        network = self.parts.factory.network(self.config.teacher.model, 0).to(memory_format=torch.channels_last)  # type: ignore[arg-type]
        self.teacher = Teacher(network)
        return network.net  # type: ignore[no-any-return]

    def keep_logits(self) -> None:
        """Compute the teacher's logits of the views of `teacher.cache`, as a run does before it trains."""
        if self._assembled().keep_logits() is None:
            raise SystemExit("teacher.cache keeps nothing here")

    def seconds(self, prebuilt: Any = None) -> float:
        """Of one step of a short run.

        Args:
            prebuilt: a batch for all steps; None: they are made from the dataset.
        """
        run = self._assembled()
        if prebuilt:
            run.loader = Prebuilt(prebuilt)  # type: ignore[assignment]
        directory = Path(tempfile.mkdtemp(dir=self._folder.name))
        made = Loop(run.method, run.loader, run.evaluator, run.clock, directory, Tracker(), "bench")
        try:
            return made.run().seconds["total"] / self.steps
        finally:
            run.loader.close()

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        schedule = self.config.schedule
        return torch.optim.SGD(
            network.parameters(), schedule.lr, momentum=schedule.momentum, nesterov=schedule.nesterov,
            weight_decay=schedule.weight_decay, foreach=True,
        )  # fmt: skip

    def _assembled(self) -> Assembly:
        """A fresh method on the same images, which are not evaluated on."""
        run = Assembly.of(self.config, CPU)
        run.arrays, run.split, run.teacher = self.parts.arrays, self.parts.split, self.teacher
        run.evaluator = Evaluator({}, 1000)
        return run


def write_random_images(path: Path, count: int, side: int) -> list[str]:
    """A dataset of 100 classes; the overrides that choose it."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 100
    np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels[:100], test_labels=labels[:100])
    return ["dataset=npz", f"dataset.path={path}"]


class Prebuilt:
    """A loader whose batches are all the same one."""

    def __init__(self, batch: Any) -> None:
        self.only = batch

    def batch(self, step: int) -> Any:
        return self.only

    def close(self) -> None:
        pass


def report_pairs(what: str, loop: Callable[[], float], bare: Callable[[], float]) -> None:
    loop(), bare()
    pairs = [(loop(), bare()) for _ in range(ROUNDS)]
    report(f"{what}: bare step", [1e3 * b for _, b in pairs], "ms")
    report("  kdrun's loop", [1e3 * a for a, _ in pairs], "ms")
    report("  loop / bare step", [a / b for a, b in pairs], "")


def fake_cifar100(root: Path) -> None:
    """CIFAR-100's files with its sizes and random pixels."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, n in (("train", 50_000), ("test", 10_000)):
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        content = {"data": pixels, "fine_labels": (np.arange(n) % 100).tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}, protocol=2))
