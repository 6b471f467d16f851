"""Shared fixtures. Tests need no network, no accelerator and no data but what they make."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import Forked, command, kill_all

# Behind nohup, or in the background of a script, they are ignored, and processes that tests start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each wait for each other most of the time
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for _name in ("WANDB_API_KEY", "HYDRA_FULL_ERROR"):
    os.environ.pop(_name, None)

# A run of seconds: tiny networks, few steps.
FAST = [
    "tracker=none", "student=resnet8", "student.args.width=4", "dataset.num_labels=50", "schedule.steps=20",
    "schedule.batch_size=16", "schedule.eval_every_steps=10", "execution.log_every_steps=5", "execution.threads=1",
    "execution.device=cpu",
]  # fmt: skip
TEACHER = ["teacher=resnet8", "teacher.model.args.width=8", "teacher.steps=10"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of a minute each first: at the end workers share what takes moments."""
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("faults", "minute")))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For many small operations: a second thread only waits for a core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def train(outputs: Path) -> Callable[..., int]:
    """`train("seed=1")`: the command line in this process; returns its exit code."""
    from kdrun.cli.train import main

    def call(*arguments: str) -> int:
        return main([*arguments, f"execution.outputs={outputs}"])

    return call


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers  # those of a command write to this test's output, which is closed by now
    kill_all()


@pytest.fixture
def spawn(outputs: Path) -> Callable[..., Forked]:
    """`spawn("seed=1")`: the command line in a process of its own."""

    def call(*arguments: str) -> Forked:
        return Forked(command, *arguments, f"execution.outputs={outputs}")

    return call
