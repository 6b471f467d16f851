"""Speed of the loop beside the bare step, and of the parts around it, measured in one process, alternating.

python scripts/bench.py                 everything
python scripts/bench.py loop views      some of it
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn import functional as F

from kdrun.data.views import Weak, apply, draw
from kdrun.losses import kd

ROUNDS = 5


def report(what: str, values: list[float], unit: str) -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{what:<62} {low:>10,.4g} {middle:>10,.4g} {high:>10,.4g}  {unit}", flush=True)


def bench_loop() -> None:
    """KD resnet56 -> resnet20, 32 px, batch 64: kdrun's loop over the same networks on prebuilt tensors."""
    from kdrun.data.dataset import load_dataset
    from kdrun.data.splits import make_split
    from kdrun.data.streams import make_loader
    from kdrun.evaluation import Evaluator
    from kdrun.loop import Loop
    from kdrun.method import Setup, Teacher
    from kdrun.plan import Composer
    from kdrun.runner import visible_targets
    from kdrun.tracking import Tracker

    steps = 40
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        pixels, labels = rng.integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8), np.arange(2000) % 100
        parts = {
            "train_images": pixels,
            "train_labels": labels,
            "test_images": pixels[:100],
            "test_labels": labels[:100],
        }
        np.savez(f"{folder}/d.npz", **parts)  # type: ignore[arg-type]
        with Composer() as composer:
            config = composer.typed([
                "dataset=npz", f"dataset.path={folder}/d.npz", "loss=kd", "student=resnet20", "teacher=resnet56",
                "tracker=none", f"schedule.steps={steps}", "schedule.eval_every_steps=null",
                "execution.progress=false", "dataset.val_fraction=0",
            ])  # fmt: skip
        arrays = load_dataset(config.dataset)
        split = make_split(config, arrays.train_labels, arrays.num_classes, 100)
        target = visible_targets(arrays, split)
        plain = Setup(arrays.num_classes, 3, arrays.mean, arrays.std, target)
        network = plain.network(config.teacher.model, 0).to(memory_format=torch.channels_last)  # type: ignore[arg-type]
        setup = Setup(arrays.num_classes, 3, arrays.mean, arrays.std, target, Teacher(network))
        resident = torch.from_numpy(arrays.train_images)
        recipes = {"weak": Weak.of(config.views.weak, (32, 32), True)}
        evaluator = Evaluator({}, 1000)

        def loop() -> float:
            method = config.method_class(config, setup).to(memory_format=torch.channels_last)
            loader = make_loader(method.streams, arrays, split, resident, {"labeled": 64}, recipes, 0)
            directory = Path(tempfile.mkdtemp(dir=folder))
            made = Loop(
                method, loader, evaluator, config.schedule.clock(len(split.labeled)), directory, Tracker(), "bench"
            )
            return made.run().seconds["total"] / steps

        batch = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
        wanted = torch.arange(64) % 100

        def bare() -> float:
            student = plain.network(config.students[0], 0).net.to(memory_format=torch.channels_last).train()
            teacher = network.net.eval()
            optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, foreach=True)
            started = time.perf_counter()
            for _ in range(steps):
                with torch.no_grad():
                    teacher_logits = teacher(batch)
                logits = student(batch)
                loss = 0.1 * F.cross_entropy(logits, wanted) + 0.9 * kd(logits, teacher_logits, 4.0).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            return (time.perf_counter() - started) / steps

        loop(), bare()
        pairs = [(loop(), bare()) for _ in range(ROUNDS)]
    report("KD resnet56 -> resnet20, batch 64: bare step", [1e3 * b for _, b in pairs], "ms")
    report("  kdrun's loop", [1e3 * a for a, _ in pairs], "ms")
    report("  loop / bare step", [a / b for a, b in pairs], "")


def bench_views() -> None:
    """Weak views of 32 px images on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for n in (64, 448):
        index = torch.randint(0, 50_000, (n,))
        for reflect in (False, True):
            recipe = Weak(4, reflect, True)
            rates = []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                for _ in range(4096 // n):
                    apply(images, index, recipe, draw(recipe, generator, n))
                rates.append(4096 // n * n / (time.perf_counter() - started))
            report(f"weak views, batch {n}, {'reflect' if reflect else 'zero'} padding, one thread", rates, "images/s")
    torch.set_num_threads(threads)


def bench_start() -> None:
    """Answers that must be quick."""
    for arguments in (["--help"], ["--cfg", "job"]):
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "kdrun.train", *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        report(f"python -m kdrun.train {' '.join(arguments)}", times, "s")


BENCHES: dict[str, Callable[[], None]] = {"start": bench_start, "views": bench_views, "loop": bench_loop}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help=f"any of {', '.join(BENCHES)}; default: all")
    chosen = parser.parse_args().which or list(BENCHES)
    if unknown := [name for name in chosen if name not in BENCHES]:
        parser.error(f"unknown bench {unknown[0]!r}; allowed: {', '.join(BENCHES)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROUNDS} rounds; min, median, max")
    for name in chosen:
        BENCHES[name]()
