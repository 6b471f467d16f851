"""What a process may use of a machine, how long its threads spin, and what memory it gives back."""

import os
import subprocess
import sys

import pytest

from kdrun.core import machine

SPINS = "import os, kdrun, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
FAULTS = """
import resource, sys
from kdrun.core.machine import keep_memory
print(keep_memory() if sys.argv[1] == "kept" else False)
import torch
count = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 2**20).add_(1)
    count.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(count))
"""
SAID = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


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


def faults(said, what):
    environment = {k: v for k, v in os.environ.items() if k not in SAID} | said
    command = [sys.executable, "-c", FAULTS, what]
    told, count = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return told == "True", int(count)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library")
def test_large_blocks_are_kept_for_the_next_step():
    (told, kept), (_, given_back) = faults({}, "kept"), faults({}, "as it was")
    assert told
    assert kept < given_back / 10  # pages of 64 MB: 16,384 where all are made anew


@pytest.mark.parametrize(
    "said", [{"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}]
)
def test_who_says_when_memory_is_given_back_is_left_alone(monkeypatch, said):
    for name in SAID:
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert not machine.keep_memory()


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    for name in SAID:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    assert not machine.keep_memory()
