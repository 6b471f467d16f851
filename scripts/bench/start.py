"""How long a command takes to its first step."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdrun.runs.layout import RUNS
from scripts.bench.harness import report, rounds


def bench_start() -> None:
    """Answers that must be quick, and the time from a command to its first step beside the imports that it needs."""
    for arguments in (["--help"], ["--cfg", "job"]):
        times = [_seconds([sys.executable, "-m", "kdrun.train", *arguments]) for _ in range(rounds())]
        report(f"python -m kdrun.train {' '.join(arguments)}", times, "s")
    imports = "import torch, timm, hydra; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)"
    pairs = [(_seconds([sys.executable, "-c", imports]), _first_step()) for _ in range(rounds())]
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
        while process.poll() is None and not any(Path(folder).glob(f"{RUNS}/*/metrics.jsonl")):
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        if process.wait():
            raise SystemExit(f"failed: {' '.join(command)}")
    return seconds
