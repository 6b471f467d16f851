"""Speed of the loop beside the bare step, and of the parts around it, measured in one process, alternating.

python scripts/bench.py                 everything
python scripts/bench.py loop views      some of it
"""

import argparse
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn import functional as F

from kdrun.config import StrongConfig
from kdrun.data.views import Recipe, Strong, Weak
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
    """Views of 32 px images on one thread, per second of CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)

    def make(recipe: Recipe, n: int) -> None:
        index = torch.randint(0, 50_000, (n,))
        recipe.apply(images, index, recipe.draw(generator, n))

    def rates(batch: Callable[[], None], n: int) -> list[float]:
        out = []
        for _ in range(ROUNDS):
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
    torch.set_num_threads(threads)


def bench_start() -> None:
    """Answers that must be quick, and the time from a command to its first step beside the imports that it needs."""
    for arguments in (["--help"], ["--cfg", "job"]):
        times = [_seconds([sys.executable, "-m", "kdrun.train", *arguments]) for _ in range(ROUNDS)]
        report(f"python -m kdrun.train {' '.join(arguments)}", times, "s")
    imports = "import torch, timm, hydra; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)"
    pairs = [(_seconds([sys.executable, "-c", imports]), _first_step()) for _ in range(ROUNDS)]
    report("bare imports (torch, timm, hydra, the first optimizer)", [a for a, _ in pairs], "s")
    report("  command to first step, resnet8 on digits", [b for _, b in pairs], "s")
    report("  difference", [b - a for a, b in pairs], "s")


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def _first_step() -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "kdrun.train", "method=supervised", "student=resnet8", "tracker=none",
            "schedule.steps=1", "execution.log_every_steps=1", f"execution.outputs={folder}",
        ]  # fmt: skip
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any(Path(folder).glob("runs/*/*/*/*/metrics.jsonl")):
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        if process.wait():
            raise SystemExit(f"failed: {' '.join(command)}")
    return seconds


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


RESIDENT = """
import sys
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

import torch
from kdrun.plan import Composer
import kdrun.runner
from kdrun.data.dataset import load_dataset
from kdrun.data.views import Weak

with Composer() as composer:
    config = composer.typed(["dataset=cifar100", "dataset.verify_md5=false", f"dataset.root={sys.argv[1]}"])
import torchvision.datasets
before = resident()
if sys.argv[2] == "load":
    arrays = load_dataset(config.dataset)
    train, test = torch.from_numpy(arrays.train_images), torch.from_numpy(arrays.test_images)
    recipe, generator = Weak(4, False, True), torch.Generator()
    for step in range(20):
        recipe.apply(train, torch.randint(0, 50_000, (64,)), recipe.draw(generator, 64))
print(resident() - before)
"""


def bench_memory() -> None:
    """What CIFAR-100 adds to a process that has imported everything."""
    if not Path("/proc/self/statm").exists():
        print("memory: needs /proc")
        return
    with tempfile.TemporaryDirectory() as folder:
        fake_cifar100(Path(folder))
        for what in ("load", "nothing"):
            values = []
            for _ in range(3):
                command = [sys.executable, "-c", RESIDENT, folder, what]
                values.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            report(f"resident memory, CIFAR-100: {what}", values, "MB")


def bench_sweep() -> None:
    """From the end of a job of a sweep (its record is on disk) to the first step of the next one."""
    from kdrun import loop, runner, train

    starts: list[float] = []
    ends: list[float] = []
    optimize, write = loop.Loop._optimize, runner.write_record

    def first(self: loop.Loop, step: int, *rest: Any) -> Any:
        if step == 0:
            starts.append(time.perf_counter())
        return optimize(self, step, *rest)

    def last(directory: Path, record: dict[str, Any]) -> None:
        write(directory, record)
        if record["status"] == "done":
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        fake_cifar100(Path(folder))
        loop.Loop._optimize, runner.write_record = first, last  # type: ignore[method-assign, assignment]
        try:
            code = train.main([
                "-m", "dataset=cifar100", "dataset.verify_md5=false", f"dataset.root={folder}", "loss=kd",
                "student=resnet8", "teacher=resnet20", "teacher.steps=2", "tracker=none", "schedule=base",
                "schedule.steps=2", "execution.progress=false", f"execution.outputs={folder}/outputs",
                f"seed={','.join(map(str, range(ROUNDS + 1)))}",
            ])  # fmt: skip
        finally:
            loop.Loop._optimize, runner.write_record = optimize, write  # type: ignore[method-assign]
    if code:
        raise SystemExit("the sweep failed")
    gaps = [start - end for start, end in zip(starts[2:], ends[1:], strict=False)]  # the first pair is the teacher's
    report("end of a job of a sweep to the next one's first step, CIFAR-100", gaps, "s")


TERMS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ("ce", "kd", "ttm", "wttm", "dkd", "dist", "nkd")},
    "kd, zscore": {"name": "kd", "standardize": "zscore"},
}


def bench_losses() -> None:
    """Each loss term, forward and backward, beside a student's step of resnet8x4: 100 classes, 32 px, batch 64.

    A term gets the features that it asks for; its share holds its gradient down to logits and features, its metrics and
    `after_step`. The teacher's pass is in neither.
    """
    from kdrun.config import ModelConfig
    from kdrun.losses import Pair, TermSpec
    from kdrun.models.network import Output, build_network
    from kdrun.registry import lookup

    labels = torch.arange(64) % 100
    plain: dict[str, Any] = {"num_classes": 100, "in_chans": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    student, teacher = (
        build_network(ModelConfig(name=name), seed=0, **plain).to(memory_format=torch.channels_last).train()
        for name in ("resnet8x4", "resnet32x4")
    )
    pixels = torch.rand(64, 3, 32, 32).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, foreach=True)
    spec = TermSpec(100, 50_000, student.dims, teacher.dims, torch.arange(50_000) % 100)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(student(pixels).logits, labels).backward()
        optimizer.step()

    def of(term: Any) -> Callable[[], None]:
        with torch.no_grad():
            seen, taught = student(pixels, term.features), teacher(pixels, term.features)
        leaves = [v.clone().requires_grad_() for v in (seen.logits, *seen.features.values())]
        out = Output(leaves[0], dict(zip(seen.features, leaves[1:], strict=True)))
        index = torch.arange(64)
        pair = Pair(out, taught, labels, index, 0.5, lambda *shape: torch.rand(shape))

        def run() -> None:
            term.zero_grad(set_to_none=True)
            for leaf in leaves:
                leaf.grad = None
            term(pair).mean().backward()
            with torch.no_grad():
                term.metrics(pair)
                term.after_step(pair)

        return run

    def seconds(call: Callable[[], None], times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - started) / times

    terms = {}
    for what, fields in TERMS.items():
        cls = lookup("loss", fields["name"], what)
        terms[what] = of(cls(cls.Config(**fields), spec))
    seconds(step, 2)
    for call in terms.values():
        seconds(call, 5)
    steps: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in terms}
    for _ in range(ROUNDS):
        steps.append(seconds(step, 3))
        for name, call in terms.items():
            shares[name].append(100 * seconds(call, 20) / steps[-1])
    report("student step of resnet8x4, batch 64", [1e3 * value for value in steps], "ms")
    for name, values in shares.items():
        report(f"  {name}: forward, backward, metrics", values, "% of the step")


BENCHES: dict[str, Callable[[], None]] = {
    "start": bench_start, "views": bench_views, "loop": bench_loop, "losses": bench_losses, "memory": bench_memory,
    "sweep": bench_sweep,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help=f"any of {', '.join(BENCHES)}; default: all")
    chosen = parser.parse_args().which or list(BENCHES)
    if unknown := [name for name in chosen if name not in BENCHES]:
        parser.error(f"unknown bench {unknown[0]!r}; allowed: {', '.join(BENCHES)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROUNDS} rounds; min, median, max")
    for name in chosen:
        BENCHES[name]()
