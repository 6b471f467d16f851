"""The gap between the jobs of a sweep."""

import tempfile
import time
from pathlib import Path
from typing import Any

from kdrun.cli import train
from kdrun.training import loop, runner
from scripts.bench.harness import fake_cifar100, report, rounds


def bench_sweep() -> None:
    """From the end of a job of a sweep (its record is on disk) to the first step of the next one."""
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
                f"seed={','.join(map(str, range(rounds() + 1)))}",
            ])  # fmt: skip
        finally:
            loop.Loop._optimize, runner.write_record = optimize, write  # type: ignore[method-assign]
    if code:
        raise SystemExit("the sweep failed")
    gaps = [start - end for start, end in zip(starts[2:], ends[1:], strict=False)]  # the first pair is the teacher's
    report("end of a job of a sweep to the next one's first step, CIFAR-100", gaps, "s")
