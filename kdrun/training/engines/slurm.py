"""SLURM, by submitit: what can start now is submitted as an array, teachers too; nothing is made on the login node.

Some time before its limit a job gets USR2: its run writes a checkpoint, submitit's handler puts the same job into the
queue again (`kdrun/core/signals.py` calls it last of all), and the run goes on. What a job has made is read from the
file that it leaves, and from the run's record; SLURM is asked only whether a job is still there.
"""

import contextlib
import io
import logging
import os
import pickle
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kdrun.core import signals
from kdrun.core.errors import ConfigError
from kdrun.core.paths import python_path
from kdrun.core.registry import register
from kdrun.training.engines.commands import (
    PENDING,
    command,
    in_queue,
    last_of,
    refused,
    require_partition,
    require_possible,
)
from kdrun.training.engines.engine import Engine, EngineConfig
from kdrun.training.engines.local import PATIENCE, Local
from kdrun.training.task import AGAIN, DONE, FAILED, Ended, Task

log = logging.getLogger(__name__)
ASK = 10.0
"""Seconds between two questions to SLURM."""
GRACE = 15.0
"""Seconds in which what a job left appears, on a shared file system, after SLURM has forgotten the job."""
AWAY = 600.0
"""Seconds in which SLURM may be away, restarted for example."""
LOOK = 0.5  # seconds between two looks into the folder


@register("engine", "slurm")
class Slurm(Engine):
    """Jobs of `runs_per_job` runs. A slot is a place in SLURM's queue."""

    queues = True

    class Config(EngineConfig):
        name: str = "slurm"
        partition: str | None = None
        minutes: int = Field(240, gt=0)
        """Time limit of a job."""
        signal_seconds: int = Field(120, gt=0)
        """So long before the limit, or up to a minute earlier, the runs write their checkpoints."""
        requeues: int = Field(100, ge=0)
        """How often a job that reached its limit is submitted again."""
        cpus: int = Field(4, gt=0)
        gpus: int = Field(1, ge=0)
        runs_per_job: int = Field(1, gt=0)
        at_once: int = Field(1, gt=0)
        """Of the runs of a job."""
        slots: int = Field(1000, gt=0, le=1000)
        """Runs in the queue or at work; SLURM's own limit of an array is 1000 by default."""
        jobs_at_once: int | None = Field(None, gt=0)
        """Of an array; null: SLURM decides."""
        options: dict[str, str | int | bool] = Field({})
        """More of sbatch's."""

        @model_validator(mode="after")
        def _check(self) -> "Slurm.Config":
            if self.signal_seconds >= 60 * self.minutes:
                raise ValueError("signal_seconds: must be less than the time limit, engine.minutes")
            return self

    @classmethod
    def prepare(cls, config: "Slurm.Config") -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError("engine=slurm: there is no sbatch here; start it where jobs are submitted")
        installed()
        require_partition(config.partition)
        require_possible(config.partition, config.minutes, config.cpus, config.gpus, tuple(config.options.items()))

    def __init__(self, config: "Slurm.Config") -> None:
        super().__init__(config)
        self.prepare(config)
        self.submitit = installed()
        self.slots = config.slots
        self.folder: Path | None = None
        self.jobs: dict[str, _Job] = {}
        self.numbers: set[str] = set()
        self.unsent: dict[str, str] = {}
        """Name -> task of what waits for SLURM to answer."""
        self.asked = time.monotonic()
        self.away: float | None = None
        """Since when it does not."""
        self.failures = False

    @property
    def text(self) -> str:
        config = self.config
        runs = f", {config.runs_per_job} runs each" if config.runs_per_job > 1 else ""
        gpus = f" and {config.gpus} GPUs" if config.gpus else ""
        return f"SLURM, jobs of {config.minutes} minutes on {config.cpus} cores{gpus}{runs}"

    @property
    def queued(self) -> frozenset[str]:
        return frozenset(self.unsent).union(*(job.names for job in self.jobs.values() if job.queued))

    def start(self, tasks: Mapping[str, Task]) -> None:
        if not tasks:
            return
        if self.folder is None:
            self.folder = folder_of(next(iter(tasks.values())))
        self.unsent |= {name: task.text for name, task in tasks.items()}
        self._submit(self.folder)

    def wait(self, seconds: float) -> list[tuple[str, Ended]]:
        end = time.monotonic() + seconds
        while self.jobs or self.unsent:
            ended = self._ended()
            left = end - time.monotonic()
            if ended or left <= 0:
                return ended
            time.sleep(min(LOOK, left))
        return []

    def stop(self) -> None:
        """Running jobs get INT: a checkpoint, and no new place in the queue. What still is there then is cancelled."""
        self.unsent.clear()
        if not self.jobs:
            return
        numbers, end = sorted(self.numbers), time.monotonic() + PATIENCE
        while in_queue() is None:
            if time.monotonic() > end:
                log.warning("engine=slurm: SLURM does not answer, so its jobs %s go on", " ".join(numbers))
                return
            time.sleep(LOOK)
        command("scancel", "--state=PENDING", *numbers)
        command("scancel", "--signal=INT", *numbers)
        end = time.monotonic() + PATIENCE
        while any(job.split("_")[0] in self.numbers for job in in_queue() or ()):
            if time.monotonic() > end:
                command("scancel", *numbers)
                break
            time.sleep(LOOK)
            command("scancel", "--state=PENDING", *numbers)  # what was about to be submitted again
        self.jobs.clear()

    def close(self) -> None:
        if self.folder is not None and not self.failures:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _submit(self, folder: Path) -> None:
        """What is not submitted yet; where SLURM does not answer, that is for later. What it has taken all the same
        finds its runs done, or held.

        Raises:
            ConfigError: it refuses.
        """
        config, names = self.config, list(self.unsent)
        parts = [names[i : i + config.runs_per_job] for i in range(0, len(names), config.runs_per_job)]
        makers = [
            Allocation({name: self.unsent[name] for name in part}, config.at_once, threads_of(config)) for part in parts
        ]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                sent = self._executor(folder).submit_array(makers)
        except (self.submitit.core.utils.FailedJobError, self.submitit.core.utils.FailedSubmissionError) as error:
            why = last_of(str(error).splitlines()).removeprefix("sbatch: error: ")
            if in_queue() is not None:
                raise refused(why) from None
            self._stays_away(why)
            return
        for job, part in zip(sent, parts, strict=True):
            self.jobs[job.job_id] = _Job(job.paths.result_pickle, job.paths.stderr, part)
            self.numbers.add(job.job_id.split("_")[0])
        self.unsent.clear()

    def _stays_away(self, why: str) -> None:
        """SLURM does not answer: say so once, and give up in the end."""
        if self.away is None:
            self.away = time.monotonic()
            log.warning("engine=slurm: SLURM does not answer (%s); it is asked again for %.0f minutes", why, AWAY / 60)
        if time.monotonic() - self.away > AWAY:
            raise ConfigError(f"engine=slurm: SLURM does not answer: {why}; the same command goes on")

    def _executor(self, folder: Path) -> Any:
        config = self.config
        executor = self.submitit.SlurmExecutor(folder, max_num_timeout=config.requeues)
        executor.update_parameters(
            job_name="kdrun", partition=config.partition, time=config.minutes, signal_delay_s=config.signal_seconds,
            cpus_per_task=config.cpus, gpus_per_node=config.gpus or None,
            array_parallelism=config.jobs_at_once or config.slots, srun_args=[f"--cpus-per-task={config.cpus}"],
            setup=[f"export PYTHONPATH={shlex.quote(python_path())}"],
            additional_parameters={"requeue": True, **config.options},
        )  # fmt: skip
        return executor

    def _ended(self) -> list[tuple[str, Ended]]:
        folder = self.folder
        there = set(os.listdir(folder)) if folder is not None else set()
        ended: list[tuple[str, Ended]] = []
        for number in [number for number, job in self.jobs.items() if job.result.name in there]:
            job = self.jobs.pop(number)
            ended += job.left()
        if time.monotonic() - self.asked > ASK:
            states = in_queue()
            self.asked = time.monotonic()
            if states is None:
                self._stays_away("squeue fails")
            elif self.away is not None:
                self.away = None
                log.warning("engine=slurm: SLURM answers again")
            if self.unsent and states is not None and folder is not None:
                self._submit(folder)
            for number, job in list(self.jobs.items()):
                if states is None:
                    job.missing = None
                elif number in states:
                    job.missing, job.queued = None, states[number] == PENDING
                elif job.missing is None:
                    job.missing = self.asked
                elif self.asked - job.missing > GRACE:
                    del self.jobs[number]
                    why = f"SLURM has ended its job {number}: {job.last_line}"
                    ended += [(name, Ended(-signal.SIGKILL, why)) for name in job.names]
        self.failures |= any(end.code not in (DONE, AGAIN) for _, end in ended)
        return ended


@dataclass
class _Job:
    """What was submitted.

    Args:
        result: the file that it leaves.
        printed: what it says on stderr.
        missing: since when SLURM does not know it.
        queued: whether it waits for its place, for the first time or once more; until SLURM was asked, it does.
    """

    result: Path
    printed: Path
    names: Sequence[str]
    missing: float | None = None
    queued: bool = True

    @property
    def last_line(self) -> str:
        try:
            return last_of(self.printed.read_text("utf-8", "replace").splitlines())
        except OSError as error:
            return f"{self.printed}: {error.strerror}"

    def left(self) -> list[tuple[str, Ended]]:
        """How its runs ended, by the file that it left."""
        with self.result.open("rb") as file:
            outcome, value = pickle.load(file)
        if outcome != "success":  # then it is a traceback
            return [(name, Ended(FAILED, last_of(str(value).splitlines()))) for name in self.names]
        said = {name: Ended(code, why) for name, (code, why) in value.items()}
        return [
            (name, end if end.why or end.code in (DONE, AGAIN) or end.code < 0 else Ended(end.code, self.last_line))
            for name, end in said.items()
        ]


class Allocation:
    """What a job does: its runs, through the local engine.

    Args:
        texts: the tasks by name, as JSON.
        at_once: how many of them at once.
        threads: of each.
    """

    def __init__(self, texts: Mapping[str, str], at_once: int, threads: int) -> None:
        self.texts, self.at_once, self.threads = dict(texts), at_once, threads
        self.ended: dict[str, tuple[int, str]] = {}
        self.code = DONE

    def __call__(self) -> dict[str, tuple[int, str]]:
        """Exit code and last line of each run, by name."""
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        self.code = signals.exit_code(self._run)
        return {name: self.ended.get(name, (self.code, "")) for name in self.texts}

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again, where a signal has ended this; what has ended stays so."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> int:
        left = [name for name in self.texts if name not in self.ended]
        running: set[str] = set()
        with Local(Local.Config(slots=self.at_once, threads=self.threads)) as engine:
            engine.apart()  # so that the death of one run is told at once, and costs no other one a try
            try:
                while left or running:
                    now = [left.pop(0) for _ in range(min(len(left), engine.slots - len(running)))]
                    running |= set(now)
                    engine.start({name: Task.from_text(self.texts[name]) for name in now})
                    for name, end in engine.wait(ASK):
                        running.discard(name)
                        self.ended[name] = (end.code, end.why)
            except BaseException:
                engine.stop()
                raise
        return DONE


def threads_of(config: "Slurm.Config") -> int:
    return max(1, config.cpus // config.at_once)


def folder_of(task: Task) -> Path:
    """Where jobs and engine leave files for each other: beside the runs, which all machines see."""
    parent = Path(task.folder, os.path.expanduser(task.config["execution"]["outputs"]), ".cache", "slurm")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise ConfigError(f"execution.outputs: {parent}: no folder can be made there ({error.strerror})") from None


def installed() -> Any:
    """submitit. Raises ConfigError where it is not installed."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "WARNING")
    try:
        import submitit
        import submitit.core.utils
    except ImportError as error:
        raise ConfigError(f"engine=slurm: {error}; pip install 'kdrun[slurm]'") from None
    return submitit
