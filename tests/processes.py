"""Processes that a test may kill: forked from a server that has imported kdrun, which costs a fresh one five seconds."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "kdrun.cli.train", "kdrun.cli.plan", "kdrun.training.runner"])
STARTED: list["Forked"] = []


class Forked:
    """`function(*arguments)` in a process of its own; what it returns is the exit code. `text` is what it printed."""

    def __init__(self, function: Callable[..., int], *arguments: object) -> None:
        file, name = tempfile.mkstemp(suffix=".txt")
        os.close(file)
        self.printed = Path(name)
        self._process = CONTEXT.Process(target=_in_child, args=(name, function, arguments))
        self._process.start()
        STARTED.append(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def text(self) -> str:
        return self.printed.read_text()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float) -> int:
        """The exit code; fails where the process goes on for longer than that."""
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"still running after {seconds} s: {self.text}"
        return code

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Until this holds, while the process runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None, f"the process ended early: {self.text}"
            assert time.monotonic() < end, f"timed out: {self.text}"
            time.sleep(0.02)


def kill_all() -> None:
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.printed.unlink()


def command(*arguments: str) -> int:
    """The command line of kdrun."""
    from kdrun.cli.train import main

    return main(list(arguments))


def _in_child(printed: str, function: Callable[..., int], arguments: tuple[object, ...]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # an engine may have started the server, which signals do not end
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(function(*arguments))
