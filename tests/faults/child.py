"""Processes that are broken on purpose: forked from one that has imported everything, so that each costs little."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0  # a run takes about one; what goes on for so long hangs


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """The exit code; -n: signal n ended it; None: it went on, and was killed."""
    text: str
    """What it printed."""

    @property
    def flaw(self) -> str | None:
        """What no process may do, whatever happened to its files: hang, crash, print a traceback, fail without a word."""
        if self.code is None:
            return "hang"
        if "Traceback" in self.text or "Fatal Python error" in self.text:
            return "traceback"
        if self.code < 0 or self.code > 128:
            return "crash"
        if self.code and not 1 <= sum(line.startswith(("error:", "failed:")) for line in self.text.splitlines()) <= 20:
            return "mute"
        return None


class Child:
    """`function(*arguments)`, whose value is the exit code, in a process of its own with `folder` as working directory."""

    def __init__(self, folder: Path, function: Callable[..., int], *arguments: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.printed = folder.parent / f"{folder.name}.{time.monotonic_ns()}.txt"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(folder, self.printed, function, arguments)

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL) if os.getpgid(self.pid) == self.pid else os.kill(self.pid, signal.SIGKILL)

    def ended(self, seconds: float = SECONDS) -> Ended:
        """Waits for the end. What goes on for longer than that is killed."""
        end = time.monotonic() + seconds
        code: int | None
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                self.kill()
                os.waitpid(self.pid, 0)
                code = None
                break
            time.sleep(0.004)
        else:
            code = os.waitstatus_to_exitcode(found[1])
        text = self.printed.read_text(errors="replace")
        self.printed.unlink()
        return Ended(code, text)


def _run(folder: Path, printed: Path, function: Callable[..., int], arguments: tuple[object, ...]) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = function(*arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
