"""A sweep on real engines, where they are installed: everything is made, once, and a killed run is tried again."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kdrun.cli.sweep import execute
from kdrun.runs.record import find_records, read_record
from tests.conftest import FAST, TEACHER
from tests.processes import Forked

pytestmark = pytest.mark.slow
SWEEP = [*FAST, *TEACHER, "schedule.steps=800", "loss=ce,kd", "seed=0,1"]


def sweep(*words: str) -> int:
    return execute(words)


def answers(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    )


def owner(outputs: Path) -> int | None:
    """The process of a run that trains."""
    for lock in outputs.rglob("*.lock"):
        directory = lock.with_name(lock.name.removesuffix(".lock"))
        if (read_record(directory) or {}).get("steps"):
            return int(json.loads(lock.read_text())["pid"])
    return None


def test_a_sweep_on_ray_survives_the_death_of_a_run(outputs):
    pytest.importorskip("ray")
    process = Forked(sweep, *SWEEP, f"execution.outputs={outputs}", "engine=ray")
    found: list[int] = []
    process.wait_for(lambda: found.extend(filter(None, [owner(outputs)])) or found, 240)
    os.kill(found[0], signal.SIGKILL)
    assert process.wait(300) == 0, process.text
    assert "tried again: killed by SIGKILL" in process.text
    assert [record["status"] for _, record in find_records(outputs)] == ["done"] * 5


def test_a_sweep_on_slurm(outputs):
    pytest.importorskip("submitit")
    if not answers("sinfo"):
        pytest.skip("no SLURM")
    words = [f"execution.outputs={outputs}", "engine=slurm", "engine.gpus=0", "engine.cpus=1", "engine.minutes=10"]
    process = Forked(sweep, *SWEEP, *words, "engine.runs_per_job=2")
    assert process.wait(400) == 0, process.text
    assert [record["status"] for _, record in find_records(outputs)] == ["done"] * 5
    assert not list((outputs / ".cache" / "slurm").iterdir())
