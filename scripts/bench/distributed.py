"""A step of two processes beside one process, and a step whose batch is taken in parts, in kdrun's loop.

On a CPU ranks share the cores that one process has, and what they exchange takes the same cores: this shows what they
add to a step. What several GPUs gain it does not show.
"""

import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import distributed as dist

from kdrun.core.world import World, enter
from scripts.bench.cases import CASES, Case
from scripts.bench.harness import Inside, report, rounds
from scripts.bench.step import CaseBench, peak_memory

RANKS = 2
LOCAL = "schedule.batch_norm=local"
OVER_RANKS = tuple(
    (dataclasses.replace(CASES[name], images=5_000, steps=10), more)
    for name, more in (("kd", ()), ("kd", (LOCAL,)), ("dist", (LOCAL,)), ("crd", (LOCAL,)))
)
"""With `local` a step exchanges gradients, what its loss gathers and what the host decides; without, statistics too."""
IN_PARTS = tuple(
    dataclasses.replace(CASES[name], networks="resnet56 -> resnet20, 32 px", images=5_000, steps=4)
    for name in ("kd", "dist")
)
"""Of which the former is a mean over images, so parts are steps of their own, and the latter's passes are chunks."""
BATCH, PARTS = 256, (1, 2, 4)


# ------------------------------------------------------------------------------------------------------------- ranks


class Talk(Inside):
    """Seconds inside the calls that exchange tensors, waiting for the other ranks included."""

    def begin(self) -> None:
        super().begin()
        self.averaging = 0.0  # of them, in averaging gradients: their copy in one piece, and back

    def listen(self) -> None:
        """From now on, in this process."""
        self._within = False
        owners: list[tuple[Any, str]] = [
            (World, "average"), (World, "lately"), (dist, "all_reduce"), (dist, "all_gather"), (dist, "broadcast")
        ]  # fmt: skip
        for owner, name in owners:
            setattr(owner, name, self._heard(getattr(owner, name), name == "average"))

    def watch(self, made: Any) -> None:
        """Nothing of one loop."""

    def _heard(self, call: Callable[..., Any], averages: bool) -> Callable[..., Any]:
        def heard(*args: Any, **kwargs: Any) -> Any:
            if self._within:
                return call(*args, **kwargs)
            self._within, started = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._within, spent = False, time.perf_counter() - started
                self.seconds += spent
                self.averaging += spent * averages

        return heard


class Spent(NamedTuple):
    """Seconds of a step."""

    step: float
    talk: float
    averaging: float
    """In averaging gradients, a part of `talk`."""


class Ranks:
    """Processes of one thread each that run a case together whenever they are asked. They are children of a fresh
    server: this process has threads, which bear no fork."""

    def __init__(self, case: Case, *more: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["scripts.bench.distributed"])
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self._processes = [], []
        for rank in range(RANKS):
            here, there = context.Pipe()
            arguments = there, rank, self._folder.name, case.alone, more
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def spent(self) -> Spent:
        """Of a step of the loop, by the slowest. Raises EOFError where a rank has failed, which has said why."""
        for pipe in self._pipes:
            pipe.send(True)
        return max(pipe.recv() for pipe in self._pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if error is None:
                pipe.send(False)
                process.join()
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, rank: int, folder: str, case: Case, more: Sequence[str]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    enter(World(rank, RANKS, store))
    bench, talk = CaseBench(case, "fp32", *more), Talk()
    talk.listen()
    while pipe.recv():
        step = bench.loop_seconds(inside=talk)
        pipe.send(Spent(step, talk.seconds / bench.timed, talk.averaging / bench.timed))
    dist.destroy_process_group()


def bench_ranks(cases: Sequence[tuple[Case, Sequence[str]]] = OVER_RANKS) -> None:
    """Two ranks of a thread, each with half of the batch, by turns with one process of two threads and of one."""
    for case, more in cases:
        alone = CaseBench(case, "fp32", *more)
        with Ranks(case, *more) as ranks:
            found = _by_turns({
                "ranks": ranks.spent, "two": partial(_with_threads, 2, alone), "one": partial(_with_threads, 1, alone)
            })  # fmt: skip
        spent: list[Spent] = found["ranks"]
        told = {"case": case.name, "networks": case.networks, "overrides": " ".join(more)}
        steps = [one.step for one in spent]
        report(f"{', '.join([case.title, *more])}: two processes", _ms(steps), "ms", **told)
        report("  one process of two threads", _ms(found["two"]), "ms", **told)
        report("  one process of one thread", _ms(found["one"]), "ms", **told)
        report("  two processes / one of two threads", _ratios(steps, found["two"]), "", **told)
        report("  two processes / one of one thread", _ratios(steps, found["one"]), "", **told)
        report("  share in exchanging tensors", [100 * one.talk / one.step for one in spent], "%", **told)
        report(
            "    of the step, in averaging gradients", [100 * one.averaging / one.step for one in spent], "%", **told
        )
    print("Two processes have the cores of one here: this is what they add. Waiting for each other counts as exchange.")


def _with_threads(count: int, bench: CaseBench) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return bench.loop_seconds()
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------- parts


def bench_accumulate(cases: Sequence[Case] = IN_PARTS, batch: int = BATCH, memory: bool = True) -> None:
    """`schedule.accumulate` beside the whole batch, in its two forms, on one thread.

    Args:
        memory: at most, of a process of its own for each.
    """
    for case in cases:
        words = {k: (f"schedule.batch_size={batch}", f"schedule.accumulate={k}") for k in PARTS}
        benches = {k: CaseBench(case, "fp32", *more) for k, more in words.items()}
        found = _by_turns({k: partial(_with_threads, 1, bench) for k, bench in benches.items()})
        told = {"case": case.name, "networks": case.networks}
        form = "passes in chunks" if case.name == "dist" else "a mean over images"
        report(f"{case.title}, batch {batch}, {form}: whole", _ms(found[1]), "ms", **told)
        for k in PARTS[1:]:
            report(f"  accumulate={k} / whole", _ratios(found[k], found[1]), "", **told)
        for k, more in words.items() if memory else ():
            report(f"  memory at most, accumulate={k}", [1e-9 * peak_memory(case, "fp32", more)], "GB", **told)


# ------------------------------------------------------------------------------------------------------------ figures


def _by_turns(timed: Mapping[Any, Callable[[], Any]]) -> dict[Any, list[Any]]:
    """What each gives, round by round; once around before anything counts, and the k-th round begins with the k-th."""
    names = list(timed)
    found: dict[Any, list[Any]] = {name: [] for name in names}
    for k in range(-1, rounds()):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            value = timed[name]()
            if k >= 0:
                found[name].append(value)
    return found


def _ms(seconds: Sequence[float]) -> list[float]:
    return [1e3 * one for one in seconds]


def _ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(one, other, strict=True)]
