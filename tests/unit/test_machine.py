"""What a process may use of a machine, and how long its threads spin."""

import os
import subprocess
import sys

import pytest

from kdrun.core import machine

SPINS = "import os, kdrun, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("quota", "wanted"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("50000 100000", 1),
        ("900000 100000", 4),
        ("what is this", 4),
        (None, 4),
    ],
)
def test_a_containers_quota_counts(monkeypatch, tmp_path, quota, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        machine.QUOTA.write_text(f"{quota}\n")
    assert machine.cores() == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, machine.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_are_told_to_sleep_before_torch_is_loaded_and_a_user_says_otherwise(given, wanted):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    told = subprocess.run([sys.executable, "-c", SPINS], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [wanted, "False"]
