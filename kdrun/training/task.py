"""One run on its way to where it is made: as JSON, so that a worker composes nothing and reads no YAML."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from kdrun.config.job import Job
from kdrun.config.nodes import dump, from_record
from kdrun.core import signals
from kdrun.core.errors import ConfigError, Held, KdrunError
from kdrun.core.slot import Slot, occupied
from kdrun.training.runner import run

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

    @classmethod
    def of(cls, job: Job, role: str, environment: Mapping[str, str] | None = None) -> Self:
        return cls(
            dump(job.config), job.key, list(job.overrides), job.content, role, os.getcwd(), dict(environment or {})
        )

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def text(self) -> str:
        """JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def job(self) -> Job:
        """Raises ConfigError where this is another run here."""
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


def work(task: Task, place: Slot, job: Job | None = None) -> int:
    """Make a run in this process. Returns the exit code.

    Args:
        job: the same, where it is at hand.
    """
    return signals.exit_code(lambda: made(task, place, job))


def made(task: Task, place: Slot, job: Job | None = None) -> int:
    """As `work`. Raises Interrupted: stopped by a signal."""
    os.environ.update(task.environment)
    if task.folder and task.folder != os.getcwd():
        os.chdir(task.folder)
    try:
        with occupied(place):
            record = run(task.job() if job is None else job, task.role, wait=False)
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
