"""A step of every method: kdrun's loop, the bare step, the step by hand and the peers' loop, alternating.

Each stretch begins with a step that is not timed: it touches memory and makes kernels for the first time, and workers
and threads begin. The loop is a run's own, with its data, log and average of weights. The bare step is the same
method's on batches that are there: `method(batch, ctx)`, backward pass and optimizer, nothing else. By hand, it is
written out in plain torch. The peers' loop is `scripts.bench.peers`, float32 always: their mixed precision is for CUDA
alone (PEERS_SSL.md 4.7).
"""

import dataclasses
import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from kdrun.core.device import autocast
from kdrun.data.views.view import Batch
from kdrun.methods.step import Context
from kdrun.training.assembly import Assembly
from kdrun.training.captured import CapturedStep
from kdrun.training.optimizer import make_optimizer
from scripts.bench.cases import CASES, Case
from scripts.bench.harness import CPU, Inside, LoopBench, Prebuilt, Timed, clock, report, rounds, session
from scripts.bench.peers import Given, Ran

PRECISIONS = ("fp32", "bf16")
FIRST = 1
"""Steps of a stretch before the clock runs."""
FIRST_CAPTURED = CapturedStep.UNCAPTURED + 2
"""The same with schedule.graph: those that are not captured, the capture, and a replay."""
PREBUILT = 4
"""Batches that a bare step takes in turn."""


class CaseBench(LoopBench):
    """A case put together as a run is.

    Args:
        more: overrides after the case's own, e.g. `schedule.batch_size=256`.
        steps: of each measured stretch; None: the case's, by device.
    """

    bare_teacher: nn.Module
    """Without its input adapter; absent where the case has none."""

    def __init__(
        self, case: Case, precision: str = "fp32", *more: str, device: torch.device = CPU, steps: int | None = None
    ) -> None:
        self.case = case
        steps = steps or (case.steps_on_cuda if device.type == "cuda" else case.steps)
        overrides = (*case.overrides, f"schedule.precision={precision}", *more)
        first = FIRST_CAPTURED if "schedule.graph=true" in overrides else FIRST
        super().__init__(*overrides, steps=steps + first, device=device, images=case.images, side=case.side)
        self.timed, self.first = steps, first
        self.waits: list[float] = []
        """Of each run of the loop on the dataset, the share of its time in data."""
        if self.config.teacher.kind().present:
            self.bare_teacher = self.give_teacher()
        self.sizes = self.config.method_class.batch_sizes(self.config)
        self.seen = self.parts.size[0]
        """Side of what networks see, in pixels."""
        self._batches: list[Batch] = []

    @property
    def images_a_step(self) -> int:
        """Of all streams; a strong view beside a weak one is not counted."""
        return sum(self.sizes.values())

    def assembled(self) -> Assembly:
        run = super().assembled()
        if self.config.method.name == "kd_fixmatch":  # a run has them of its outer network
            labels = torch.arange(self.case.images, device=self.device) % 101 - 1
            run.loader.give({"trusted_label": labels})
        return run

    def loop_seconds(self, prebuilt: Batch | None = None, inside: Inside | None = None) -> float:
        """Of a step of the run's loop.

        Args:
            prebuilt: a batch for all steps; None: they are made from the dataset.
            inside: is shown the loop, and told where the clock begins.
        """
        return self._steady(prebuilt, inside)[0]

    def _steady(self, prebuilt: Batch | None, inside: Inside | None) -> tuple[float, float]:
        """Seconds of a step, and of its waiting for data."""
        run = self.assembled()
        if prebuilt is not None:
            run.loader.close()
        loader = Timed(run.loader if prebuilt is None else Prebuilt(prebuilt), self.first, self.device, inside)
        run.loader = loader  # type: ignore[assignment]
        made = self.loop(run)
        if inside is not None:
            inside.watch(made)
        try:
            made.run()
            seconds = clock(self.device) - loader.began
            if prebuilt is None:
                self.waits.append(loader.data / seconds)
            return seconds / self.timed, loader.data / self.timed
        finally:
            loader.close()

    def bare(self) -> float:
        """Seconds of a step of the method alone."""
        run = self.assembled()
        batches = self._made(run)
        method, precision = run.method.train(), self.config.schedule.precision
        optimizer = make_optimizer(method)
        started = 0.0
        for step in range(self.steps):
            if step == self.first:
                started = clock(self.device)
            ctx = Context(self.config.seed, step, self.steps, self.device)
            with autocast(self.device, precision):
                out = method(batches[step % len(batches)], ctx)
            optimizer.zero_grad(set_to_none=True)
            method.backward(out.losses, _as_it_is)
            optimizer.step()
            method.finish_step()  # memories of loss terms are part of them
        return (clock(self.device) - started) / self.timed

    def by_hand(self) -> Callable[[], float] | None:
        return None if self.case.by_hand is None else self.case.by_hand(self)

    def peers(self) -> Callable[[], Ran] | None:
        """The peers' loop on the same networks and images."""
        loop = self.case.peers
        if loop is None:
            return None

        def run() -> Ran:
            before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = True  # PEERS_KD.md 6.2: cudnn tries its kernels for each shape
            try:
                return loop(self._given())
            finally:
                torch.backends.cudnn.benchmark = before

        return run

    def shares(self) -> dict[str, float]:
        """Of one run of the loop: data, and host, what is neither data nor inside the method's calls, each in [0, 1].

        On CUDA calls return before the device is done, so there is no host share: see `Measured.host`.
        """
        inside = Inside()
        seconds, data = self._steady(None, inside)
        found = {"data": data / seconds}
        if self.device.type == "cpu":
            found["host"] = (seconds - data - inside.seconds / self.timed) / seconds
        return found

    def prebuilt_seconds(self) -> float:
        """Of a step of the loop on a batch that is there."""
        return self.loop_seconds(self._made(self.assembled())[0])

    def evaluation(self, images: int) -> float:
        """Seconds to evaluate one image, networks and metrics."""
        run = self.assembled()
        source, labels = run.images[0], run.labels
        index = torch.arange(min(images, len(labels)), device=self.device)
        run.evaluator = type(run.evaluator)(
            {"test": (source, index, labels.to(self.device)[index])}, **run.evaluation
        )  # fmt: skip
        made = self.loop(run)
        try:
            started = clock(self.device)
            run.evaluator.metrics(made.final_logits())
            return (clock(self.device) - started) / len(index)
        finally:
            run.loader.close()

    def _given(self) -> Given:
        schedule, arrays = self.config.schedule, self.parts.arrays
        student = self.network(self.config.students[0]).to(memory_format=torch.contiguous_format)
        teacher = getattr(self, "bare_teacher", None)
        if teacher is not None:  # a copy, for kdrun's is channels_last
            teacher = self.parts.factory.network(self.config.teacher.model, 0).net.to(self.device)  # type: ignore[arg-type]
            teacher = teacher.eval().requires_grad_(False)
        return Given(
            student, teacher, arrays.train_images, arrays.train_labels, schedule.batch_size, self.timed, self.device,
            schedule.lr, schedule.momentum, schedule.weight_decay, self.sizes.get("unlabeled", 0),
        )  # fmt: skip

    def _made(self, run: Assembly) -> list[Batch]:
        """Batches for bare steps, made once. Closes the loader."""
        if not self._batches:
            self._batches = [run.loader.batch(step) for step in range(min(PREBUILT, self.steps))]
        run.loader.close()
        return self._batches


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


# ------------------------------------------------------------------------------------------------------- measuring


@dataclasses.dataclass
class Measured:
    """One case at one precision, round by round, seconds a step."""

    case: Case
    precision: str
    more: tuple[str, ...]
    """Overrides after the case's own: what `case.networks` says of batches may not hold."""
    images_a_step: int
    loop: list[float]
    bare: list[float]
    by_hand: list[float]
    peers: list[float]
    peers_loss: float | None
    data: list[float]
    """Shares of the loop's time, in [0, 1]."""
    host: list[float]
    """On a CPU: the loop's time outside data, evaluation and the calls of the bare step. On CUDA: what the loop on a
    batch that is there takes beyond the bare step."""
    evaluation: list[float]
    """Share of a run's time with the case's cadence and number of test images, of what one image took."""
    memory: float
    """Bytes at most: of a process that does nothing else, or of what torch allocated on the device."""


def measure(
    case: Case, precision: str = "fp32", *more: str, device: torch.device = CPU, times: int | None = None,
    steps: int | None = None, peers: bool = True, memory: bool = True, brief: bool = False,
) -> Measured:  # fmt: skip
    """All of a case, once around before anything counts.

    Args:
        more: overrides after the case's own.
        times: rounds; None: those of the session.
        peers: whether to run the peers' loop.
        memory: whether to measure it, on a CPU in a process of its own.
        brief: the loop and the bare step alone, with the share in data of the loops that are timed.
    """
    times = rounds() if times is None else times
    bench = CaseBench(case, precision, *more, device=device, steps=steps)
    hand, theirs = None if brief else bench.by_hand(), bench.peers() if peers and not brief else None
    ran: list[Ran] = []
    timed: dict[str, Callable[[], float]] = {"loop": bench.loop_seconds, "bare": bench.bare}
    if hand is not None:
        timed["by_hand"] = hand
    if theirs is not None:
        timed["peers"] = lambda: (ran.append(theirs()), ran[-1].seconds)[1]
    cuda = device.type == "cuda"
    if cuda and not brief:
        timed["prebuilt"] = bench.prebuilt_seconds
    most = 0.0
    for name, call in timed.items():
        if cuda and name == "loop":
            clock(device)  # CUDA has begun then
            torch.cuda.reset_peak_memory_stats(device)
        call()
        if cuda and name == "loop":
            most = float(torch.cuda.max_memory_allocated(device))
    found = [_one_round(timed, k) for k in range(times)]
    seconds = {name: [one[name] for one in found] for name in timed}
    again = 0 if brief else max(1, times // 2)
    shares = [{"data": one} for one in bench.waits[-times:]] if brief else [bench.shares() for _ in range(again)]
    an_image = [bench.evaluation(200 if case.side <= 32 else 32) for _ in range(again)]
    train = sorted(seconds["loop"])[times // 2] * case.epoch / bench.sizes["labeled"]
    if not cuda and memory:
        most = peak_memory(case, precision, more)
    return Measured(
        case, precision, more, bench.images_a_step, seconds["loop"], seconds["bare"], seconds.get("by_hand", []),
        seconds.get("peers", []), ran[-1].loss if ran else None, [one["data"] for one in shares],
        [1 - b / p for p, b in zip(seconds.get("prebuilt", []), seconds["bare"], strict=False)] if cuda
        else [one["host"] for one in shares if not brief],
        [one * case.tested / (one * case.tested + train) for one in an_image], most,
    )  # fmt: skip


def _one_round(timed: Mapping[str, Callable[[], float]], k: int) -> dict[str, float]:
    """Seconds of each; the k-th round begins with the k-th, for what runs after what makes a difference."""
    names = list(timed)
    found = {}
    for name in names[k % len(names) :] + names[: k % len(names)]:
        gc.collect()  # what is left of the one before
        found[name] = timed[name]()
    return found


def peak_memory(case: Case, precision: str, more: Sequence[str] = ()) -> float:
    """Bytes that a process takes at most in a short run of a case, imports and images included; 0 where the system is
    not Linux. It is a child of a fresh server that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scripts.bench.step"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak, case.alone, precision, tuple(more)).result()


def _peak(case: Case, precision: str, more: tuple[str, ...]) -> float:
    if sys.platform != "linux":
        return 0.0
    bench = CaseBench(case, precision, *more, steps=2)
    Path("/proc/self/clear_refs").write_text("5")  # what making the images took does not count
    bench.loop_seconds()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def show(found: Measured) -> None:
    """Print and keep a case's figures."""
    told = {"case": found.case.name, "networks": found.case.networks, "precision": found.precision}
    if found.more:
        told["overrides"] = " ".join(found.more)
    title = ", ".join([found.case.title, *found.more, found.precision])

    def say(what: str, kind: str, values: Sequence[float], unit: str, factor: float = 1.0) -> None:
        if values:
            report(what, [factor * value for value in values], unit, kind=kind, **told)

    def ratio(what: str, one: Sequence[float], other: Sequence[float]) -> None:
        say(f"  {what}", what, [a / b for a, b in zip(one, other, strict=False)], "")

    say(f"{title}: loop", "loop", found.loop, "ms", 1e3)
    say("  bare step", "bare", found.bare, "ms", 1e3)
    say("  by hand", "by_hand", found.by_hand, "ms", 1e3)
    say(f"  loop of {found.case.whose}, fp32", "peers", found.peers, "ms", 1e3)
    ratio("loop / bare step", found.loop, found.bare)
    ratio("bare step / by hand", found.bare, found.by_hand)
    ratio("loop / by hand", found.loop, found.by_hand)
    ratio("peers' loop / loop", found.peers, found.loop)
    if not found.peers:
        print("  peers' loop / loop                                                      -  nothing known of one")
    say("  images", "images", [found.images_a_step / one for one in found.loop], "images/s")
    say("  share in data", "data", found.data, "%", 100)
    say("  share on the host", "host", found.host, "%", 100)
    every = f"{found.case.tested:,} test images each {found.case.epoch:,}"
    say(f"  share in evaluation, {every}", "evaluation", found.evaluation, "%", 100)
    if found.memory:
        say("  memory at most", "memory", [found.memory], "GB", 1e-9)


def bench_step(cases: str = "", precisions: str = ",".join(PRECISIONS)) -> None:
    """Every case, or those named, at each precision."""
    for name in cases.split(",") if cases else CASES:
        if name not in CASES:
            raise SystemExit(f"cases: unknown {name!r}; allowed: {', '.join(CASES)}")
        for precision in precisions.split(","):
            show(measure(CASES[name], precision, device=session.device))
