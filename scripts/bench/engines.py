"""Runs on the local engine beside the plain loop, and how long one takes to start."""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from kdrun.cli.plan import plan
from kdrun.cli.views import Lines
from kdrun.config.compose import Composer
from kdrun.config.job import Job
from kdrun.training.engines.engine import Engine, EngineConfig
from kdrun.training.engines.local import Local
from kdrun.training.graph import Graph
from kdrun.training.sweep import Sweep
from kdrun.training.task import DONE, Ended, Task
from scripts.bench.harness import report

TINY = [
    "dataset=digits", "dataset.num_labels=50", "method=supervised", "student=resnet8", "student.args.width=4",
    "schedule.steps=20", "schedule.batch_size=16", "schedule.eval_every_steps=20", "execution.log_every_steps=20",
    "execution.device=cpu", "tracker=none", "execution.progress=false",
]  # fmt: skip
RUNS_OF_A_SWEEP, PAIRS, STARTS = 50, 3, 10


def bench_engines() -> None:
    """50 small runs, one after the other and in two slots of one thread, alternating; then single starts."""
    for steps in (20, 300):
        pairs = [(_sweep(steps, "engine.slots=1"), _sweep(steps, "engine.slots=2")) for _ in range(PAIRS)]
        report(f"{RUNS_OF_A_SWEEP} runs of {steps} steps, one after the other", [one for one, _ in pairs], "s")
        report("  two slots of the local engine", [two for _, two in pairs], "s")
        report("  ratio", [two / one for one, two in pairs], "")
    with tempfile.TemporaryDirectory() as folder, Local(Local.Config(slots=2, threads=1)) as engine:
        _made(engine, _task(folder, 0))  # it starts the server
        starts = [_made(engine, _task(folder, seed)) for seed in range(1, STARTS + 1)]
        again = [_made(engine, _task(folder, seed))[1] for seed in range(1, STARTS + 1)]
    report("start of a run on the warm server, to its first step", [first for first, _ in starts], "s")
    report("  to the end of a run that is done already", again, "s")


class Instant(Engine):
    """Runs that end at once."""

    slots = 64

    def __init__(self) -> None:
        super().__init__(EngineConfig(name="instant"))
        self.ended: list[tuple[str, Ended]] = []

    def start(self, tasks: Mapping[str, Task]) -> None:
        self.ended += [(name, Ended(DONE)) for name, task in tasks.items() if task.text]

    def wait(self, seconds: float) -> list[tuple[str, Ended]]:
        return [self.ended.pop(0)] if self.ended else []

    def stop(self) -> None:
        return


def bench_scheduler() -> None:
    """Composing, checking and carrying out 10 kinds of runs on an engine whose runs take no time: kdrun's own share."""
    with tempfile.TemporaryDirectory() as folder:
        for count in (100, 1000, 10_000):
            seeds = f"seed={','.join(map(str, range(count // 10)))}"
            words = [*TINY, "schedule.lr=" + ",".join(f"0.{k}" for k in range(1, 11)), seeds]
            started = time.process_time()
            asked = plan(["-m", *words, f"execution.outputs={folder}/{count}"])
            composed = time.process_time()
            graph = Graph.of(asked.jobs if asked is not None else [])
            view = Lines(graph, Instant(), Path(folder))
            with contextlib.redirect_stderr(io.StringIO()), view:
                Sweep(graph, view.engine, view).run()
            ended = time.process_time()
            report(f"{count:,} runs: composed and checked", [composed - started], "s of CPU")
            report("  as a graph, started and ended", [ended - composed], "s of CPU")


def _sweep(steps: int, slots: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seed={','.join(map(str, range(RUNS_OF_A_SWEEP)))}"
        words = [*TINY, f"schedule.steps={steps}", seeds, slots, f"execution.outputs={folder}"]
        command = [sys.executable, "-m", "kdrun.train", "-m", *words]
        if slots == "engine.slots=1":
            command.append("engine.threads=1")
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - started


def _task(folder: str, seed: int) -> Task:
    words = [*TINY, f"seed={seed}", "execution.log_every_steps=1", f"execution.outputs={folder}"]
    with Composer() as composer:
        return Task.of(Job(composer.typed(words), tuple(words)), "train")


def _made(engine: Local, task: Task) -> tuple[float, float]:
    """Seconds to the first step and to the end."""
    job = task.job()
    written = job.directory / "metrics.jsonl"
    started, first = time.perf_counter(), float("nan")
    engine.start({"run": task})
    ended: list[object] = []
    while not ended:
        ended = [end.code for _, end in engine.wait(0.005)]
        if first != first and written.exists():
            first = time.perf_counter() - started
    if ended != [DONE]:
        raise SystemExit(f"failed: {job.directory}")
    return first, time.perf_counter() - started
