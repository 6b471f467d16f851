"""What the benchmarks share: rounds, how figures are printed and kept, and kdrun's loop on data made for it."""

import dataclasses
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
from kdrun.data.views.view import Batch
from kdrun.teachers.teacher import Teacher
from kdrun.training.assembly import Assembly
from kdrun.training.evaluator import Evaluator
from kdrun.training.loop import Loop
from kdrun.training.tracking import Tracking

CPU = torch.device("cpu")


@dataclasses.dataclass
class Session:
    """One call of the command: how often everything is measured, where, and what came out."""

    rounds: int = 5
    device: torch.device = CPU
    bench: str = ""
    """The one that runs."""
    figures: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """{bench, of, what, unit, values, min, median, max, and what `report` was told beside}."""


session = Session()


def rounds() -> int:
    return session.rounds


def report(what: str, values: Sequence[float], unit: str, **told: Any) -> None:
    """Print a figure and keep it.

    Args:
        what: two spaces before it: it belongs to the last figure without.
        told: what stands beside it in the file, e.g. case, precision and kind.
    """
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{what:<62} {low:>10,.4g} {middle:>10,.4g} {high:>10,.4g}  {unit}", flush=True)
    above = [figure["what"] for figure in session.figures if figure["bench"] == session.bench and not figure["of"]]
    of = above[-1] if what.startswith(" ") and above else None
    found = {"values": list(values), "min": low, "median": middle, "max": high}
    session.figures.append({"bench": session.bench, "of": of, "what": what.strip(), "unit": unit, **told, **found})


def clock(device: torch.device = CPU) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call: Callable[[], Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


class LoopBench:
    """kdrun's loop on random images of CIFAR's size, put together as a run is, from overrides.

    Args:
        data: other images: overrides of `dataset`.
        images: else that many random ones.
        side: of them, in pixels.
    """

    first = 0
    """Steps before the clock runs."""

    def __init__(
        self, *overrides: str, steps: int, data: Sequence[str] = (), device: torch.device = CPU, images: int = 5000,
        side: int = 32,
    ) -> None:  # fmt: skip
        self.steps = steps
        self.device = device
        self._folder = tempfile.TemporaryDirectory()
        data = data or write_random_images(Path(self._folder.name) / "d.npz", images, side)
        with Composer() as composer:
            self.config = composer.typed([
                *data, "tracker=none", f"schedule.steps={steps}", f"execution.outputs={self._folder.name}",
                "schedule.eval_every_steps=null", "execution.progress=false", "dataset.val_fraction=0", *overrides,
            ])  # fmt: skip
        self.teacher: Teacher | None = None
        self.parts = Assembly.of(self.config, device)

    def network(self, model: ModelConfig) -> torch.nn.Module:
        """A new one without its input adapter, for training."""
        network = self.parts.factory.network(model, 0).net.to(self.device, memory_format=torch.channels_last)
        return network.train()  # type: ignore[no-any-return]

    def give_teacher(self) -> torch.nn.Module:
        """Let `teacher` of the config be a network that nobody trained. Returns it without its input adapter."""
        network = self.parts.factory.network(self.config.teacher.model, 0)  # type: ignore[arg-type]
        network = network.to(self.device, memory_format=torch.channels_last)
        self.teacher = Teacher(network, self.config.teacher.precision)
        return network.net  # type: ignore[no-any-return]

    def keep_logits(self) -> None:
        """Compute the teacher's logits of the views of `teacher.cache`, as a run does before it trains."""
        if self.assembled().keep_logits() is None:
            raise SystemExit("teacher.cache keeps nothing here")

    def seconds(self, prebuilt: Any = None) -> float:
        """Of one step of a short run.

        Args:
            prebuilt: a batch for all steps; None: they are made from the dataset.
        """
        return self.ran(prebuilt)["total"] / self.steps

    def ran(self, prebuilt: Any = None, watch: Callable[[Loop], None] = lambda made: None) -> dict[str, float]:
        """Seconds of a short run by what they went into: total, train, data and eval.

        Args:
            watch: is shown the loop before it runs.
        """
        run = self.assembled()
        if prebuilt:
            run.loader = Prebuilt(prebuilt)  # type: ignore[assignment]
        made = self.loop(run)
        watch(made)
        try:
            clock(self.device)
            seconds = made.run().seconds  # its last act brings numbers of the last step to the host
            return {**seconds, "total": seconds["total"] + _seconds_left(self.device)}
        finally:
            run.loader.close()

    def loop(self, run: Assembly) -> Loop:
        directory, hidden = Path(tempfile.mkdtemp(dir=self._folder.name)), run.labels.to(self.device)
        return Loop(
            run.method, run.loader, run.evaluator, run.clock, directory, Tracking(), "bench", hidden=hidden
        )  # fmt: skip

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        schedule = self.config.schedule
        if schedule.optimizer == "adamw":
            return torch.optim.AdamW(
                network.parameters(), schedule.lr, weight_decay=schedule.weight_decay, foreach=True
            )  # fmt: skip
        return torch.optim.SGD(
            network.parameters(), schedule.lr, momentum=schedule.momentum, nesterov=schedule.nesterov,
            weight_decay=schedule.weight_decay, foreach=True,
        )  # fmt: skip

    def assembled(self) -> Assembly:
        """A fresh method on the same images, which are not evaluated on."""
        run = Assembly.of(self.config, self.device)
        run.arrays, run.split, run.teacher = self.parts.arrays, self.parts.split, self.teacher
        run.evaluator = Evaluator({}, 1000)
        return run


def _seconds_left(device: torch.device) -> float:
    """Until the device has done what it was given."""
    started = time.perf_counter()
    return clock(device) - started


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


class Timed:
    """A loader that knows when the first steps are done, and how long it was waited for since.

    Args:
        first: how many they are.
        inside: begins anew then.
    """

    def __init__(self, loader: Any, first: int, device: torch.device, inside: "Inside | None") -> None:
        self.loader, self.first, self.device, self.inside = loader, first, device, inside
        self.began = self.data = 0.0

    def batch(self, step: int) -> Batch:
        batch: Batch = self._waited(step, self.loader.batch)
        return batch

    def drawn(self, step: int) -> Any:
        """What a captured step is given."""
        return self._waited(step, self.loader.drawn)

    def made(self, drawn: Any) -> Batch:
        made: Batch = self.loader.made(drawn)
        return made

    def _waited(self, step: int, call: Callable[[int], Any]) -> Any:
        started = time.perf_counter()
        if step == self.first:
            self.began = started = clock(self.device)
            if self.inside is not None:
                self.inside.begin()
        given = call(step)
        if step >= self.first:
            self.data += time.perf_counter() - started
        return given

    def close(self) -> None:
        self.loader.close()


class Inside:
    """Seconds inside the calls that a bare step has too, of a loop on the CPU."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.seconds = 0.0

    def watch(self, made: Loop) -> None:
        method: Any = made.method
        optimizer: Any = made.optimizer
        for owner, names in ((method, ("forward", "backward", "finish_step")), (optimizer, ("zero_grad", "step"))):
            for name in names:
                setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def report_pairs(what: str, loop: Callable[[], float], bare: Callable[[], float]) -> None:
    loop(), bare()
    pairs = [(loop(), bare()) for _ in range(rounds())]
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
