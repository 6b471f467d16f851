"""Images a second of 1, 2, 4 and 8 runs of KD that share a device, each a process of its own."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from kdrun.core.device import device_of
from kdrun.core.machine import cores
from scripts.bench.item import Given, first_line
from scripts.bench.on_device import cases
from scripts.bench.step import CaseBench

COUNTS, TINY_COUNTS = (1, 2, 4, 8), (1, 2)
STEPS, TINY_STEPS = 60, 4
PATIENCE = 60.0  # seconds that runs wait for each other


def side(given: Given) -> None:
    """The item; the process has not touched CUDA, so that runs can be forked from it."""
    counts = TINY_COUNTS if given.tiny else COUNTS
    given.plan([told(count) for count in counts])
    for count in counts:
        with given.tried(told(count)):
            rate, seconds = together(given, count)
            given.tell(
                told(count), {"images": ([rate], "images/s"), "each": ([1e3 * seconds], "ms a step")},
                networks=cases(given)[0].networks, precision="bf16", steps=steps(given), seeds=count,
            )  # fmt: skip


def told(count: int) -> str:
    return f"{count} run{'s' if count > 1 else ''}"


def steps(given: Given) -> int:
    return TINY_STEPS if given.tiny else STEPS


def together(given: Given, count: int) -> tuple[float, float]:
    """Images a second of all runs, from the first one's first step to the last one's last; seconds of a step, mean.

    Raises RuntimeError for a run that failed: what it said.
    """
    context = multiprocessing.get_context("fork")
    start = context.Barrier(count)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=_run, args=(given, count, start, pipe[1])) for pipe in pipes]
    for process in processes:
        process.start()
    for _, end in pipes:
        end.close()
    found: list[Any] = []
    for pipe, _ in pipes:
        try:
            found.append(pipe.recv())
        except EOFError:
            found.append("it was killed")
    for process in processes:
        process.join()
    if failed := [one for one in found if isinstance(one, str)]:
        raise RuntimeError(f"{len(failed)} of {count} failed: {failed[0]}")
    images = sum(one["images"] for one in found)
    window = max(one["ended"] for one in found) - min(one["began"] for one in found)
    return images / window, sum(one["ended"] - one["began"] for one in found) / count / steps(given)


def _run(given: Given, count: int, start: Any, pipe: Connection) -> None:
    try:
        torch.set_num_threads(max(1, cores() // count))
        bench = CaseBench(cases(given)[0], "bf16", device=device_of(given.device, "device"), steps=steps(given))
        bench.loop_seconds()  # kernels are made, and memory is there
        start.wait(PATIENCE)
        seconds = bench.loop_seconds() * bench.timed
        ended = time.perf_counter()
        pipe.send({"images": bench.timed * bench.images_a_step, "began": ended - seconds, "ended": ended})
    except Exception as error:
        start.abort()
        pipe.send(first_line(error))
