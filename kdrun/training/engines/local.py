"""This machine: a server that has imported everything forks a child for each run.

A child costs no imports, and a crash or the system's OOM killer touches one run. CUDA_VISIBLE_DEVICES is set in it
before CUDA starts. It is a group of its own, so that a Ctrl-C reaches it by way of the sweep alone; where the sweep is
killed, it ends with a checkpoint.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait as first_of
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from kdrun.core.errors import ConfigError
from kdrun.core.later import later
from kdrun.core.machine import cores
from kdrun.core.registry import register
from kdrun.core.signals import ENDING
from kdrun.core.slot import Slot
from kdrun.training.engines.engine import Engine, EngineConfig
from kdrun.training.engines.server import server
from kdrun.training.task import AGAIN, DONE, Ended, Task, made, work

if TYPE_CHECKING:
    import torch
else:
    torch = later("torch")

GONE = 255
"""What Python says of a child whose server is gone; the run itself may go on, and holds its lock."""
PATIENCE = 60.0
"""Seconds that a stopped run has for its checkpoint."""


@register("engine", "local")
class Local(Engine):
    """As many slots as there are GPUs, times `runs_per_device`; without a GPU one. One slot: in this very process."""

    class Config(EngineConfig):
        name: str = "local"
        slots: int | None = Field(None, gt=0, le=4096)
        """Runs at once; null: the number of GPUs times `runs_per_device`, one where there is none."""
        runs_per_device: int = Field(1, gt=0)
        """Runs that share a GPU, each with its part of the memory that `dataset.resident=auto` looks at."""
        gpus: int | None = Field(None, gt=0)
        """How many of the GPUs; null: all that this process sees."""
        threads: int | None = Field(None, gt=0)
        """Threads of torch for each run; null: the cores shared among the slots, with one slot torch's own choice."""

    @classmethod
    def prepare(cls, config: "Local.Config") -> None:
        if (config.slots or 1) > 1:
            server()  # imports while the plan is made

    def __init__(self, config: "Local.Config") -> None:
        super().__init__(config)
        self.places = places(config, visible_gpus(), cores())
        self.slots = len(self.places)
        self.free = list(self.places)
        self.inline = self.slots == 1 and config.gpus is None
        self.ended: list[tuple[str, Ended]] = []
        self.children: dict[str, Child] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def text(self) -> str:
        if self.inline:
            return "one after the other, in this process"
        gpus = len({place.gpu for place in self.places if place.gpu is not None})
        by = f" on {gpus} GPUs" if gpus else f" of {self.places[0].threads} threads"
        mps = ", under CUDA MPS" if gpus and mps_runs() else ""
        return f"{self.slots} runs at once{by}{mps}"

    def start(self, tasks: Mapping[str, Task]) -> None:
        for name, task in tasks.items():
            if self.inline:
                self.ended.append((name, Ended(made(task, Slot(threads=self.config.threads)))))
                continue
            if self.folder is None:
                self.folder = tempfile.TemporaryDirectory(prefix="kdrun-")
            self.children[name] = Child(task, self.free.pop(0), Path(self.folder.name))

    def wait(self, seconds: float) -> list[tuple[str, Ended]]:
        if self.children and not self.ended:
            first_of([child.process.sentinel for child in self.children.values()], seconds)
            for name, child in list(self.children.items()):
                if child.process.exitcode is not None:
                    del self.children[name]
                    self.free.append(child.place)
                    self.ended.append((name, child.end()))
        ended, self.ended = self.ended, []
        return ended

    def stop(self) -> None:
        stop(self.children.values())
        self.children.clear()

    def apart(self) -> None:
        self.inline = False

    def end(self, name: str) -> None:
        self.children[name].send(signal.SIGTERM)

    def close(self) -> None:
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None


class Child:
    """A run in a process of its own; what it prints goes to a file, of which the end is told where it went wrong."""

    def __init__(self, task: Task, place: Slot, folder: Path) -> None:
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        self.printed, self.place = Path(name), place
        self.process = server().Process(target=_in_child, args=(task.text, place, name), daemon=False)
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        if self.process.pid is not None and self.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def end(self) -> Ended:
        lines = self.printed.read_text("utf-8", "replace").splitlines()
        self.printed.unlink()
        code = self.process.exitcode
        if code == GONE:
            return Ended(code, "the process was killed from which runs are forked")
        quiet = code in (DONE, AGAIN, -signal.SIGKILL)  # it had no time to say why
        last = "" if quiet else next((line.strip() for line in reversed(lines) if line.strip()), "")
        return Ended(code, last.removeprefix("error: "))


def stop(children: Iterable[Child]) -> None:
    """End these runs with their checkpoints.

    Not by TERM: where SLURM has signalled them already, a second one would end them at once.
    """
    children = list(children)
    for child in children:
        child.send(signal.SIGUSR1)
    end = time.monotonic() + PATIENCE
    for child in children:
        child.process.join(max(0.0, end - time.monotonic()))
        if child.process.exitcode is None:
            child.process.kill()
            child.process.join()


def _in_child(text: str, place: Slot, printed: str) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    os.setpgid(0, 0)
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    sys.exit(work(Task.from_text(text), place))


def _end_with(sentinel: int) -> None:
    """The sweep is gone, so nobody waits for this run: it ends with a checkpoint."""
    first_of([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [str(i) for i in range(count)] if given is None else [name.strip() for name in given.split(",")]
    return names[:count]


def places(config: "Local.Config", gpus: Sequence[str], processors: int) -> list[Slot]:
    """The slots: spread over the GPUs, the first run of each before the second of any."""
    if config.gpus is not None and config.gpus > len(gpus):
        raise ConfigError(f"engine.gpus: {config.gpus} were asked for, and this machine has {len(gpus)}")
    gpus = gpus[: config.gpus]
    count = config.slots or max(1, len(gpus) * config.runs_per_device)
    threads = config.threads or (None if count == 1 else max(1, processors // count))
    share = 1 / math.ceil(count / len(gpus)) if gpus else 1.0
    return [Slot(k, gpus[k % len(gpus)] if gpus else None, threads=threads, share=share) for k in range(count)]


def mps_runs() -> bool:
    """Whether NVIDIA's daemon runs that lets processes share a GPU at the same time."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()
