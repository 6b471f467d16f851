"""Speed of the loop beside the bare step, and of the parts around it, measured in one process, alternating.

python scripts/bench.py                 everything
python scripts/bench.py loop views      some of it
"""

import argparse
import dataclasses
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from kdrun.config.views import StrongConfig
from kdrun.data.views.recipes import Strong, Weak
from kdrun.data.views.view import Recipe
from kdrun.losses.logits import kd
from kdrun.methods.uncertainty import entropy_weight

ROUNDS = 5
ONE = ("method=uncertainty_distill", "loss=kd_40_40")  # a student without peers


def report(what: str, values: list[float], unit: str) -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{what:<62} {low:>10,.4g} {middle:>10,.4g} {high:>10,.4g}  {unit}", flush=True)


def seconds_of(call: Callable[[], Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


class LoopBench:
    """kdrun's loop on random images of CIFAR's size, built as a run builds it, from overrides.

    Args:
        data: other images: overrides of `dataset`.
    """

    def __init__(self, *overrides: str, steps: int, data: Sequence[str] = ()) -> None:
        from kdrun.config.compose import Composer
        from kdrun.data.load import load_dataset
        from kdrun.data.splits import make_split
        from kdrun.methods.step import Setup
        from kdrun.training.assembly import visible_targets
        from kdrun.training.evaluator import Evaluator

        self.steps = steps
        self.stored: Any = None  # views whose logits are kept
        self._folder = tempfile.TemporaryDirectory()
        if not data:
            path = f"{self._folder.name}/d.npz"
            rng = np.random.default_rng(0)
            pixels, labels = rng.integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8), np.arange(5000) % 100
            np.savez(
                path, train_images=pixels, train_labels=labels, test_images=pixels[:100], test_labels=labels[:100],
            )  # fmt: skip
            data = ["dataset=npz", f"dataset.path={path}"]
        with Composer() as composer:
            self.config = composer.typed([
                *data, "tracker=none", f"schedule.steps={steps}",
                "schedule.eval_every_steps=null", "execution.progress=false", "dataset.val_fraction=0", *overrides,
            ])  # fmt: skip
        self.arrays = load_dataset(self.config.dataset, Path(self._folder.name))
        num_test = len(self.arrays.test_labels)
        self.split = make_split(self.config, self.arrays.train_labels, self.arrays.num_classes, num_test)
        target = visible_targets(self.arrays, self.split)
        self.setup = Setup(self.arrays.num_classes, 3, self.arrays.mean, self.arrays.std, train_target=target)
        self.evaluator = Evaluator({}, 1000)

    def give_teacher(self) -> torch.nn.Module:
        """Let `teacher` of the config be a network that nobody trained. Returns it without its input adapter."""
        from kdrun.teachers.teacher import Teacher

        network = self.setup.network(self.config.teacher.models[0], 0).to(memory_format=torch.channels_last)
        self.setup = dataclasses.replace(self.setup, teacher=Teacher(network))
        return network.net  # type: ignore[no-any-return]

    def keep_logits(self) -> None:
        """Compute the teacher's logits of the views of `teacher.cache`, as a run does before it trains."""
        from kdrun.data.residency import place
        from kdrun.teachers.cache import keep, stored_views
        from kdrun.training.assembly import recipes_of

        cpu = torch.device("cpu")
        views = stored_views(self.config, recipes_of(self.config, self.arrays)["weak"], len(self.arrays.train_images))
        images, teacher = place(self.arrays, cpu, "auto")[0], self.setup.teacher
        if views is None or teacher is None or not isinstance(images, torch.Tensor):
            raise SystemExit("teacher.cache keeps nothing here")
        index = torch.arange(len(images))
        teacher.kept, _ = keep(
            teacher._network, views, images, index, self.arrays.num_classes, cpu, 1000, "fp32", Path(self._folder.name)
        )
        self.stored = views

    def seconds(self, prebuilt: Any = None) -> float:
        """Of one step of a short run.

        Args:
            prebuilt: a batch for all steps; None: they are made from the dataset.
        """
        from kdrun.data.loader import make_loader
        from kdrun.data.residency import place
        from kdrun.training.assembly import recipes_of
        from kdrun.training.loop import Loop
        from kdrun.training.tracking import Tracker

        config = self.config
        method = config.method_class(config, self.setup).to(memory_format=torch.channels_last)
        clock = config.schedule.clock(len(self.split.labeled))
        loader = Prebuilt(prebuilt) if prebuilt else make_loader(
            method.needed.streams, self.arrays, self.split, place(self.arrays, torch.device("cpu"), "auto")[0],
            type(method).batch_sizes(config), recipes_of(config, self.arrays), 0, total_steps=clock.total_steps,
            stored=self.stored,
        )  # fmt: skip
        directory = Path(tempfile.mkdtemp(dir=self._folder.name))
        made = Loop(method, loader, self.evaluator, clock, directory, Tracker(), "bench")
        try:
            return made.run().seconds["total"] / self.steps
        finally:
            loader.close()

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        schedule = self.config.schedule
        return torch.optim.SGD(
            network.parameters(), schedule.lr, momentum=schedule.momentum, nesterov=schedule.nesterov,
            weight_decay=schedule.weight_decay, foreach=True,
        )  # fmt: skip


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


def bench_loop() -> None:
    """KD resnet56 -> resnet20, 32 px, batch 64: kdrun's loop over the same networks on prebuilt tensors."""
    bench = LoopBench("loss=kd", "student=resnet20", "teacher=resnet56", steps=40)
    teacher = bench.give_teacher()
    batch, wanted = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(64) % 100

    def bare() -> float:
        student = bench.setup.network(bench.config.students[0], 0).net.to(memory_format=torch.channels_last).train()
        optimizer = bench.optimizer(student)
        started = time.perf_counter()
        for _ in range(bench.steps):
            with torch.no_grad():
                teacher_logits = teacher(batch)
            logits = student(batch)
            loss = 0.1 * F.cross_entropy(logits, wanted) + 0.9 * kd(logits, teacher_logits, 4.0).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / bench.steps

    report_pairs("KD resnet56 -> resnet20, batch 64", bench.seconds, bare)


def bench_fixmatch() -> None:
    """FixMatch wrn_16_1, 32 px, 64 + 192 pairs: kdrun's loop with its views over the same network on prebuilt views."""
    overrides = [
        "method=fixmatch", "loss=ce", "student=wrn_16_1", "schedule=fixmatch", "schedule.eval_every_steps=null",
        "method.unlabeled_ratio=3", "method.threshold=0", "dataset.num_labels=400", "views=official",
    ]  # fmt: skip
    plain = LoopBench(*overrides, steps=10)
    known, pairs = 64, 192
    batch = torch.randn(known + 2 * pairs, 3, 32, 32).to(memory_format=torch.channels_last)
    wanted = torch.arange(known) % 100

    def bare_step(bench: LoopBench, precision: str) -> Callable[[], float]:
        def bare() -> float:
            student = bench.setup.network(bench.config.students[0], 0).net.to(memory_format=torch.channels_last).train()
            optimizer = bench.optimizer(student)
            parameters = list(student.parameters())
            average = [p.detach().clone() for p in parameters]
            started = time.perf_counter()
            for _ in range(bench.steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = student(batch)
                labeled, weak, strong = logits.float().split([known, pairs, pairs])
                confidence, label = weak.detach().softmax(1).max(1)
                unlabeled = (F.cross_entropy(strong, label, reduction="none") * (confidence >= 0)).mean()
                loss = F.cross_entropy(labeled, wanted) + unlabeled
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(average, parameters, 0.001)
            return (time.perf_counter() - started) / bench.steps

        return bare

    report_pairs("FixMatch wrn_16_1, 64 + 192 pairs", plain.seconds, bare_step(plain, "fp32"))
    half = LoopBench(*overrides, "schedule.precision=bf16", steps=10)
    report_pairs("  the same, bf16", half.seconds, bare_step(half, "bf16"))
    paired = [(half.seconds(), plain.seconds()) for _ in range(ROUNDS)]
    report("  bf16 / fp32 (channels_last both), kdrun's loop", [a / b for a, b in paired], "")


def bare_peers(
    bench: LoopBench, teacher: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, wanted: torch.Tensor
) -> Callable[[], float]:
    """Seconds of a step of the students of `bench` and their teacher, on one batch of what networks take."""

    def bare() -> float:
        students = torch.nn.ModuleList(bench.setup.network(model, 0).net for model in bench.config.students)
        students.to(memory_format=torch.channels_last).train()
        optimizer = bench.optimizer(students)
        started = time.perf_counter()
        for _ in range(bench.steps):
            with torch.no_grad():
                taught = teacher(batch)
                weight = entropy_weight(taught)
            logits = [student(batch) for student in students]
            loss = torch.zeros(())
            for own in logits:
                loss = loss + 0.4 * F.cross_entropy(own, wanted) + 0.4 * (weight * kd(own, taught, 4.0)).mean()
                for other in logits:
                    if other is not own:
                        loss = loss + 0.2 * kd(own, other.detach(), 4.0).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / bench.steps

    return bare


def bench_peers() -> None:
    """Peers resnet56 -> resnet20, wrn_16_2, 32 px, batch 64: kdrun's loop over the same networks on prebuilt tensors.

    Then the weight by the teacher's entropy, timed by itself beside a bare step of resnet20 alone: two steps, one with
    it and one without, differ by chance more than by what it takes. Then the trio.
    """
    from kdrun.data.views.view import View
    from kdrun.methods.step import Context
    from kdrun.methods.uncertainty import Entropy
    from kdrun.models.output import Output

    bench = LoopBench("method=peer_distill", "students=[resnet20,wrn_16_2]", "teacher=resnet56", steps=10)
    teacher = bench.give_teacher()
    batch, wanted = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(64) % 100
    report_pairs(
        "peers resnet56 -> resnet20, wrn_16_2, batch 64", bench.seconds, bare_peers(bench, teacher, batch, wanted)
    )
    alone = LoopBench(*ONE, "student=resnet20", "teacher=resnet56", steps=10)
    step = bare_peers(alone, teacher, batch, wanted)
    entropy = Entropy(Entropy.Config(name="entropy"), bench.setup.teacher)  # type: ignore[arg-type]
    view, seen = View(batch, wanted), Output(torch.randn(64, 100), {})
    ctx = Context(0, 0, 1, torch.device("cpu"))
    step(), seconds_of(lambda: entropy.weight(view, seen, ctx), 200)
    pairs = [(seconds_of(lambda: entropy.weight(view, seen, ctx), 200), step()) for _ in range(ROUNDS)]
    report("  the weight by the teacher's entropy", [1e3 * a for a, _ in pairs], "ms")
    report("  of the bare step of resnet20 alone", [100 * a / b for a, b in pairs], "%")

    bench_trio()


def bench_trio() -> None:
    """The dual-student paper's networks (arXiv 2511.18826), 224 px, batch 8, prebuilt: what a second student adds.

    Beside it the sum of bare steps, one of resnet18 with the teacher's pass and one of mobilenetv2_100 without.
    """
    from kdrun.data.views.view import Samples, View

    common = ("teacher=train", "teacher.model.name=resnet50")
    both = LoopBench("method=peer_distill", "students=[resnet18,mobilenetv2_100]", *common, steps=3)
    first, second = (
        LoopBench(*ONE, f"students=[{name}]", *common, steps=3) for name in ("resnet18", "mobilenetv2_100")
    )
    teacher = both.give_teacher()
    first.setup = both.setup
    pixels = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8).to(memory_format=torch.channels_last)
    batch, wanted = torch.randn(8, 3, 224, 224).to(memory_format=torch.channels_last), torch.arange(8)
    shown = {"labeled": Samples({"weak": View(pixels, wanted)}, wanted)}
    taught = torch.randn(8, 100)
    timed: dict[str, Callable[[], float]] = {
        "resnet50 -> resnet18, 224 px, batch 8: bare step": bare_peers(first, teacher, batch, wanted),
        "  bare step of mobilenetv2_100, without the teacher's pass": bare_peers(
            second, lambda _: taught, batch, wanted
        ),
        "  kdrun's step of resnet18 alone": lambda: first.seconds(shown),
        "  kdrun's step of both": lambda: both.seconds(shown),
    }
    for call in timed.values():
        call()
    rounds = [[call() for call in timed.values()] for _ in range(ROUNDS)]
    for what, values in zip(timed, zip(*rounds, strict=True), strict=True):
        report(what, [1e3 * value for value in values], "ms")
    report("  kdrun: both / resnet18 alone (paper: 1.63)", [two / one for _, _, one, two in rounds], "")
    report("  bare: sum / resnet18 alone", [(a + b) / a for a, b, _, _ in rounds], "")
    report("  kdrun's step of both / sum of the bare steps", [two / (a + b) for a, b, _, two in rounds], "")


def bench_dho() -> None:
    """A step of DHO beside one of a single head (method=sho) on the same batches, then DHO's with kept logits.

    The heads have 100 classes; the teacher is as small as the student, so that its pass hides little. Kept logits are
    computed before the first step, so the steps of no epoch ask the teacher.
    """
    small = ("student=resnet8", "teacher=resnet8")
    large = ("student=timm", "student.name=resnet18", "teacher=train", "teacher.model.name=resnet18")
    kept = ("teacher.cache.mode=views", "teacher.cache.num_views=1")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/d.npz"
        rng = np.random.default_rng(0)
        pixels, labels = rng.integers(0, 256, (400, 64, 64, 3), dtype=np.uint8), np.arange(400) % 100
        np.savez(
            path, train_images=pixels, train_labels=labels, test_images=pixels[:100], test_labels=labels[:100],
        )  # fmt: skip
        wide = ["dataset=npz", f"dataset.path={path}"]
        compare_heads("resnet8, 32 px, 64 + 64 images", small, kept, [], 20)
        compare_heads("resnet18, 64 px, 32 + 32 images", (*large, "schedule.batch_size=32"), kept, wide, 6)


def compare_heads(what: str, networks: Sequence[str], cache: Sequence[str], data: Sequence[str], steps: int) -> None:
    """One head, two heads, and two heads with the teacher's logits kept, in turn."""
    two = LoopBench("method=dho", *networks, steps=steps, data=data)
    two.give_teacher()
    one = LoopBench("method=sho", *networks, steps=steps, data=data)
    one.setup = two.setup
    cached = LoopBench("method=dho", *networks, *cache, steps=steps, data=data)
    cached.give_teacher()
    cached.keep_logits()
    passes: list[None] = []
    cached.setup.teacher._network.register_forward_hook(lambda *_: passes.append(None))  # type: ignore[union-attr]
    timed = {
        f"{what}: one head": one.seconds,
        "  two heads (DHO)": two.seconds,
        "  two heads, the teacher's logits kept": cached.seconds,
    }
    for call in timed.values():
        call()
    rounds = [[call() for call in timed.values()] for _ in range(ROUNDS)]
    for name, values in zip(timed, zip(*rounds, strict=True), strict=True):
        report(name, [1e3 * value for value in values], "ms")
    report("  two heads / one head (target: 1.03)", [b / a for a, b, _ in rounds], "")
    report("  two heads, kept / not kept", [c / b for _, b, c in rounds], "")
    report("  passes of the teacher in the steps with kept logits", [len(passes)], "")


def bench_views() -> None:
    """Views of 32 px images on one thread, per second of CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.from_numpy(real_crops(50_000))
    generator = torch.Generator().manual_seed(0)

    def make(recipe: Recipe, n: int) -> None:
        index = torch.randint(0, 50_000, (n,))
        recipe.apply(images, index, recipe.draw(generator, n))

    def rates(batch: Callable[[], None], n: int, rounds: int = ROUNDS) -> list[float]:
        out = []
        for _ in range(rounds):
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

    pairs = [(rates(lambda: make(strong, 448), 448, 1)[0], rates(pillow, 448, 1)[0]) for _ in range(ROUNDS)]
    report("strong views, one image at a time with Pillow and torchvision", [b for _, b in pairs], "images/s")
    report("  kdrun's / these, official", [a / b for a, b in pairs], "")
    torch.set_num_threads(threads)


def real_crops(count: int) -> np.ndarray:
    """(count, 32, 32, 3) uint8, of the two photos that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    rng, photos, out = np.random.default_rng(0), load_sample_images().images, []
    for k in range(count):
        photo = photos[k % 2]
        y, x = rng.integers(0, photo.shape[0] - 32), rng.integers(0, photo.shape[1] - 32)
        out.append(photo[y : y + 32, x : x + 32])
    return np.stack(out)


def pillow_pipeline() -> Callable[[Any], torch.Tensor]:
    """What FixMatch's ports do to an image: mirror, crop, RandAugment, cutout, to a tensor, normalise."""
    from torchvision import transforms

    def cutout(image: Any) -> Any:
        x, y = (int(v) for v in np.random.uniform(-8, 24, 2))
        ImageDraw.Draw(image).rectangle((max(x, 0), max(y, 0), x + 16, y + 16), (127, 127, 127))
        return image

    return transforms.Compose([
        transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
        transforms.RandAugment(num_ops=1),  # always applied: as many as two with probability 1/2
        cutout, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip


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
    from kdrun.cli import train
    from kdrun.training import loop, runner

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
    **{name: {"name": name} for name in ("ce", "kd", "ttm", "wttm", "dkd", "dist", "nkd", "crd")},
    **{name: {"name": name} for name in ("itrd", "fitnet", "at", "rkd", "pkt", "vid")},
    "kd, zscore": {"name": "kd", "standardize": "zscore"},
}


def bench_losses() -> None:
    """Each loss term, forward and backward, beside a student's step of resnet8x4: 100 classes, 32 px, batch 64.

    A term gets the features that it asks for; its share holds its gradient down to logits and features, its metrics and
    `after_step`. The teacher's pass is in neither.
    """
    from kdrun.config.model import ModelConfig
    from kdrun.core.registry import lookup
    from kdrun.losses.term import Pair, TermSpec
    from kdrun.models.network import build_network
    from kdrun.models.output import Output

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
            seen = student(pixels, term.needed.features)
            taught = teacher(pixels, term.needed.of_teacher)
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

    terms = {}
    for what, fields in TERMS.items():
        cls = lookup("loss", fields["name"], what)
        terms[what] = of(cls(cls.Config(**fields), spec))
    seconds_of(step, 2)
    for call in terms.values():
        seconds_of(call, 5)
    steps: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in terms}
    for _ in range(ROUNDS):
        steps.append(seconds_of(step, 3))
        for name, call in terms.items():
            shares[name].append(100 * seconds_of(call, 20) / steps[-1])
    report("student step of resnet8x4, batch 64", [1e3 * value for value in steps], "ms")
    for name, values in shares.items():
        report(f"  {name}: forward, backward, metrics", values, "% of the step")


def bench_metrics(images: int = 10_000) -> None:
    """The closed-form metrics of an evaluation, beside the networks' pass in it: resnet20, 100 classes, 32 px."""
    from kdrun.config.model import ModelConfig
    from kdrun.models.network import build_network
    from kdrun.training.evaluator import Evaluator

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain: dict[str, Any] = {"num_classes": 100, "in_chans": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    network = build_network(ModelConfig(name="resnet20"), seed=0, **plain).to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
    index, target = torch.arange(images), torch.randint(0, 100, (images,), generator=generator)
    evaluator = Evaluator({"test": (pixels.to(device), index.to(device), target.to(device))}, 1000)
    network.eval()

    def seconds() -> tuple[float, float]:
        started = time.perf_counter()
        logits = evaluator.logits(lambda view: {"student": network(view).logits})
        if device.type == "cuda":
            torch.cuda.synchronize()
        middle = time.perf_counter()
        evaluator.metrics(logits)  # ends with its numbers on the host
        return middle - started, time.perf_counter() - middle

    seconds()
    pairs = [seconds() for _ in range(ROUNDS)]
    report(f"evaluation of resnet20 on {images:,} images: the network", [1e3 * a for a, _ in pairs], "ms")
    report("  its metrics", [1e3 * b for _, b in pairs], "ms")
    report("  metrics / evaluation", [100 * b / (a + b) for a, b in pairs], "%")


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
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from kdrun.config.compose import Composer
    from kdrun.data.load import load_dataset
    from kdrun.data.loader import make_loader
    from kdrun.data.residency import place
    from kdrun.data.splits import make_split
    from kdrun.data.views.view import rows
    from kdrun.training.assembly import recipes_of

    cpu, batch, workers = torch.device("cpu"), 32, 2
    with tempfile.TemporaryDirectory() as folder:
        tree, outputs = Path(folder) / "tree", Path(folder) / "outputs"
        write_photos(tree, images)
        given = ["dataset=imagefolder", f"dataset.path={tree}", "dataset.val_fraction=0", "dataset.pack.size=256"]
        with Composer() as composer:
            packed, streamed = (
                composer.typed([
                    *given, "views=imagenet", "method=supervised", "teacher=none", f"dataset.stream={stream}",
                    f"schedule.batch_size={batch}",
                ])
                for stream in ("false", "true")
            )  # fmt: skip
        order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
        pixels, _ = place(load_dataset(packed.dataset, outputs), cpu, "auto")
        arrays = load_dataset(streamed.dataset, outputs)
        files, _ = place(arrays, cpu, "auto", workers)
        times = [
            [seconds_of(lambda source=source: [rows(source, at, cpu) for at in order.split(batch)], 1)
             for source in (pixels, files)]
            for _ in range(ROUNDS)
        ]  # fmt: skip
        report("decoding 500x375 -> 256 px, all cores", [images / b for _, b in times], "images/s")
        report("  packed, in random order", [images / a for a, _ in times], "images/s")
        report("  packed / decoding", [b / a for a, b in times], "")

        split = make_split(streamed, arrays.train_labels, 2, len(arrays.test_labels))
        recipes = {"weak": recipes_of(streamed, arrays)["weak"]}
        steps = images // batch

        def ours(total: int) -> float:
            loader = make_loader(
                {"labeled": ("weak",)}, arrays, split, files, {"labeled": batch}, recipes, 0, None, total, device=cpu
            )
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
            student = bench.setup.network(bench.config.students[0], 0).net.to(memory_format=torch.channels_last).train()
            optimizer = bench.optimizer(student)
            started = time.perf_counter()
            for _ in range(bench.steps):
                loss = F.cross_entropy(student(tensor), wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            return (time.perf_counter() - started) / bench.steps

        report_pairs("resnet18, packed images of 64 px, batch 32", bench.seconds, bare_step)


TABLE = """
import sys, time
from pathlib import Path
from kdrun import tables
from kdrun.planned import PlannedCell, PlannedRun, TableConfig, TablePlan

outputs, planned = sys.argv[1], sys.argv[2] == "planned"
if planned:
    names = {name: [f"{name}{i}" for i in range(10)] for name in ("row", "column")}
    spec = TableConfig(
        seeds=list(range(50)), rows={n: [] for n in names["row"]}, columns={n: [] for n in names["column"]}
    )
    def runs(i, j):
        place = f"runs/distill/digits/n{10 * (j + 1)}"
        return [
            PlannedRun(seed=s, place=f"{place}/s{s}-{(10 * i + j) * 50 + s:012x}", net="resnet8", needs={})
            for s in range(50)
        ]
    plan = TablePlan(cells=[
        PlannedCell(row=row, column=column, overrides=[], given_teacher=False, teacher_temperature=1,
                    teacher_as_trained=True, deviations=[], runs=runs(i, j))
        for i, row in enumerate(spec.rows) for j, column in enumerate(spec.columns)
    ])
    tables.table_spec, tables.plan_of = lambda _: spec, lambda *_: plan
started = time.process_time()
text = tables.main([f"outputs={outputs}", *(["table=t"] if planned else [])])
assert text.count("(n=50)") == 100
status = Path("/proc/self/status")  # not getrusage, whose maximum begins with that of the process before exec
lines = status.read_text().splitlines() if status.exists() else ["VmHWM: nan"]
most = next(line for line in lines if line.startswith("VmHWM"))
print(time.process_time() - started, float(most.split()[1]) / 1e3)
"""


def bench_tables(size: int = 20_000) -> None:
    """Reading and printing 5,000 records of 20 kB: 10 rows, 10 columns, 50 seeds. CPU time after the imports."""
    path = Path(__file__).resolve().parent.parent / "outputs" / "published" / "mixup_kd_digits" / "records.jsonl"
    base = json.loads(path.read_text().splitlines()[0])
    more = (size - len(json.dumps(base))) // 55
    with tempfile.TemporaryDirectory() as folder:
        for k in range(5000):
            row, column, seed = k // 500, k // 50 % 10, k % 50
            schedule = {**base["config"]["schedule"], "lr": 0.01 * (row + 1)}
            record = {
                **base, "key": f"{k:012x}", "seed": seed, "num_labels": 10 * (column + 1),
                "config": {**base["config"], "seed": seed, "schedule": schedule},
                "metrics": {**base["metrics"], **{f"train/term/some_metric_of_a_name_{i}": i / 7 for i in range(more)}},
            }  # fmt: skip
            place = Path(folder) / "runs" / "distill" / "digits" / f"n{record['num_labels']}" / f"s{seed}-{k:012x}"
            place.mkdir(parents=True)
            (place / "record.json").write_text(json.dumps(record))
        for what in ("found", "planned"):
            command = [sys.executable, "-c", TABLE, folder, what]
            done = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(ROUNDS)]
            seconds, memory = zip(*(map(float, text.split()) for text in done), strict=True)
            report(f"a table of 5,000 records of 20 kB, {what}", list(seconds), "s of CPU")
            report("  most memory of the process", list(memory), "MB")


BENCHES: dict[str, Callable[[], None]] = {
    "start": bench_start, "views": bench_views, "loop": bench_loop, "fixmatch": bench_fixmatch, "peers": bench_peers,
    "losses": bench_losses, "metrics": bench_metrics, "memory": bench_memory, "sweep": bench_sweep, "data": bench_data,
    "dho": bench_dho, "tables": bench_tables,
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
