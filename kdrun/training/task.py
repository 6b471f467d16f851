"""One run on its way to where it is made: as JSON, so that a worker composes nothing and reads no YAML."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from kdrun.config.job import Job
from kdrun.config.nodes import dump, from_record
from kdrun.core import signals
from kdrun.core.errors import ConfigError, Held, KdrunError
from kdrun.core.later import later
from kdrun.core.registry import load_plugins
from kdrun.core.slot import Slot, occupied

if TYPE_CHECKING:
    from kdrun.training.runner import run
else:
    run = later("kdrun.training.runner", "run")

DONE, FAILED, MISTAKE, AGAIN = 0, 1, 2, os.EX_TEMPFAIL
"""Exit codes of a worker; 128 + n: stopped by signal n, goes on from its checkpoint. AGAIN (75): another process is at
work on the run, ask again later."""


@dataclass(frozen=True)
class Task:
    """A run, as `dump` has its configuration.

    Args:
        key: of the run here; where it is another one there, code or files differ, and it is refused.
        role: what another run calls it, or `train` where it was asked for.
        folder: the working directory, to which paths are relative.
        environment: what `hydra.job.env_set` sets.
    """

    config: dict[str, Any]
    key: str
    overrides: list[str] = field(default_factory=list)
    content: str | None = None
    role: str = "train"
    folder: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    checked: Job | None = field(default=None, compare=False, repr=False)
    """The same in the process that planned it; it does not travel."""

    @classmethod
    def of(cls, job: Job, role: str, environment: Mapping[str, str] | None = None) -> Self:
        return cls(
            dump(job.config), job.key, list(job.overrides), job.content, role, os.getcwd(), dict(environment or {}), job
        )

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def text(self) -> str:
        """JSON."""
        own = {name.name: getattr(self, name.name) for name in fields(self) if name.name != "checked"}
        return json.dumps(own, ensure_ascii=False)

    def job(self) -> Job:
        """Raises ConfigError where this is another run here."""
        if self.checked is not None:
            load_plugins(self.checked.config.plugins)  # another run may have put its own in their place
            return self.checked
        job = Job(from_record(self.config), tuple(self.overrides), self.content)
        if job.key != self.key:
            raise ConfigError(
                f"{job.place}: was planned with the key {self.key}: its files, plug-ins or kdrun itself are others "
                "here than there; plan again"
            )
        return job


@dataclass(frozen=True)
class Ended:
    """How a worker ended.

    Args:
        code: its exit code; negative: the signal that killed it.
        why: the last line that it printed, where it did not end well.
    """

    code: int
    why: str = ""

    @property
    def text(self) -> str:
        """What became of it, where its record does not tell."""
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}" + (f": {self.why}" if self.why else "")
        return self.why or f"ended with exit code {self.code}"


@contextmanager
def _surroundings(task: Task) -> Iterator[None]:
    """The environment and the folder of a task, as long as it lasts: a process may make several."""
    before, folder = {name: os.environ.get(name) for name in task.environment}, os.getcwd()
    os.environ.update(task.environment)
    if task.folder:
        os.chdir(task.folder)
    try:
        yield
    finally:
        os.chdir(folder)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def work(task: Task, place: Slot) -> int:
    """Make a run in this process. Returns the exit code."""
    return signals.exit_code(lambda: made(task, place))


def made(task: Task, place: Slot) -> int:
    """As `work`. Raises Interrupted: stopped by a signal."""
    try:
        with _surroundings(task), occupied(place):
            record = run(task.job(), task.role, wait=False)
        return DONE if record["status"] == "done" else FAILED
    except Held:
        return AGAIN
    except ConfigError as error:
        code, lines = MISTAKE, error.lines
    except (KdrunError, OSError) as error:  # before there was a record to write it into
        code, lines = FAILED, [str(error)]
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return code
