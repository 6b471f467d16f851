"""An item of `scripts.bench.accelerator`, seen from the process in which it runs."""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait as first_of
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from kdrun.core.signals import ENDING

DONE, FAILED, OVER = 0, 1, 3
"""Exit codes of an item; OVER: it stopped at its cap."""


class Over(KeyboardInterrupt):
    """The time of an item is over."""


@dataclass
class Given:
    """What an item is given, and how it tells what it finds: at once, for it may be killed."""

    device: str
    stops: float
    """When it is asked to stop, as of `time.time`; soon after it is killed."""
    data: str
    """A folder of images, or "" for random ones."""
    folder: str
    """For what it writes."""
    path: str
    """The lines that it tells."""
    before: list[dict[str, Any]] = field(default_factory=list)
    """Figures of the items before."""

    began: float = field(default_factory=time.time)

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    @property
    def left(self) -> float:
        """Seconds until it is asked to stop."""
        return self.stops - time.time()

    def tell(self, what: str, figures: dict[str, tuple[Sequence[float], str]], of: str = "", **told: Any) -> None:
        """Something measured.

        Args:
            figures: name -> (values, unit).
            of: of what was planned, where that is called otherwise.
            told: beside it: precision, steps, seeds.
        """
        now = time.time()
        found = {
            name: {"unit": unit, "values": list(values), "min": min(values), "median": median(values),
                   "max": max(values)}
            for name, (values, unit) in figures.items() if values
        }  # fmt: skip
        self._line(what=what, of=of or what, figures=found, told=told, seconds=round(now - self.began, 2))
        self.began = now

    def plan(self, names: Sequence[str]) -> None:
        """What it means to measure: what is not told in the end was not reached."""
        self._line(planned=list(names))

    def note(self, text: str) -> None:
        self._line(note=text)

    def fail(self, text: str, of: str = "") -> None:
        """Something went wrong, and it goes on."""
        self._line(failed=text, of=of)

    def begin(self, name: str) -> None:
        """What is measured next."""
        print(f"-- {name}", flush=True)
        self.began = time.time()
        self._line(begun=name)

    @contextlib.contextmanager
    def tried(self, name: str) -> Iterator[None]:
        """Around what may fail without touching what comes after it."""
        self.begin(name)
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail(f"{name}: {first_line(error)}", of=name)

    def _line(self, **content: Any) -> None:
        with Path(self.path).open("a") as file:
            file.write(json.dumps(content) + "\n")


def first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:200]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What an item has told; a last line that it was killed in is left out."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def begin(work: str, given: Given, printed: str, environment: dict[str, str]) -> None:
    """Target of the process: the leader of a session, whose output goes to a file."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.update(environment)
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore, which an item that is killed leaves behind
    tempfile.tempdir = given.folder  # nothing is left of an item that is killed
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    given.began = time.time()
    signal.signal(signal.SIGALRM, _over)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, given.left))
    try:
        module, _, name = work.partition(":")
        getattr(importlib.import_module(module), name)(given)
        code = DONE
    except Over:
        print("its time is over", flush=True)
        code = OVER
    except Exception as error:
        traceback.print_exc()
        given.fail(first_line(error))
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what an item left running is killed; nothing may wait for it


def _end_with(sentinel: int) -> None:
    """Who started the item is gone, and with it the cap: it ends with all that it has started."""
    first_of([sentinel])
    os.killpg(0, signal.SIGKILL)


def _over(*_: object) -> None:
    raise Over


def describe(given: Given) -> None:
    """The machine, the device's driver, and what torch does with float32."""
    import torch

    from kdrun.core.device import device_of
    from scripts.bench.machine import machine

    found = machine(device_of(given.device, "device"))
    if "accelerator" in found:
        found["accelerator"]["flags"] = {
            "tf32 in convolutions": torch.backends.cudnn.allow_tf32,
            "tf32 in products": torch.backends.cuda.matmul.allow_tf32,
        }
    given._line(machine=found)
