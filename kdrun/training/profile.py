"""Where the time of a step goes, by torch's profiler: a trace of some steps, and the operations that take longest."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from kdrun.config.run import RunConfig
from kdrun.core.files import atomic_path
from kdrun.core.world import world

log = logging.getLogger(__name__)
TRACE = "trace.json"
SKIPPED, WARM = 5, 1
"""Steps before those that are looked at: kernels are chosen and memory is found, then the profiler itself begins."""
SHOWN = 10


class Steps(Protocol):
    """What is told of each step."""

    def step(self) -> None: ...


class _Nobody:
    def step(self) -> None:
        """Nobody looks."""


@contextmanager
def profiled(config: RunConfig, directory: Path, device: torch.device) -> Iterator[Steps]:
    """Looks at `execution.profile_steps` steps, those of the first rank; writes trace.json and logs a table.

    A run of fewer steps, and one that goes on so near its end, leaves what was seen until then.
    """
    active = config.execution.profile_steps
    if active is None or not world().first:
        yield _Nobody()
        return
    log.info("profiling %d steps, after %d", active, SKIPPED + WARM)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # what its library says on stderr, of a machine without CUDA too
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    seen: list[int] = []

    def keep(found: Any) -> None:
        with atomic_path(directory / TRACE) as path:
            found.export_chrome_trace(str(path))
        seen.append(found.step_num)
        for line in _table(found.key_averages(), device):
            log.info("%s", line)
        log.info("profile: %s, for chrome://tracing or Perfetto", directory / TRACE)

    steps = schedule(skip_first=SKIPPED, wait=0, warmup=WARM, active=active, repeat=1)
    with profile(activities=kinds, schedule=steps, on_trace_ready=keep, acc_events=True) as looking:
        yield looking
    if not seen:
        log.warning("execution.profile_steps: the run ended before its step %d, nothing was seen", SKIPPED + WARM + 1)


def _table(events: Any, device: torch.device) -> list[str]:
    """The operations that take longest themselves, without those that they call; of CUDA by the time of kernels."""
    on_device = device.type == "cuda"

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    found = [event for event in events if not event.key.startswith("ProfilerStep")]
    if on_device:  # a kernel's time is told of the operation too that has begun it
        found = [event for event in found if event.device_type.name == "CUDA"]
    total = sum(map(spent, found)) or 1.0
    found = sorted(found, key=spent, reverse=True)[:SHOWN]
    head = f"{'ms':>9}  {'share':>5}  {'calls':>6}  operation ({'kernels' if on_device else 'its own time'})"
    return [head, *(
        f"{spent(event) / 1e3:9.2f}  {spent(event) / total:5.1%}  {event.count:6}  {event.key[:80]}" for event in found
    )]  # fmt: skip
