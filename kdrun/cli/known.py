"""Command lines whose runs are all done: told at once, without torch, which composing and checking them loads.

What a command line came to is kept in `<outputs>/.cache/commands` as the plan of a table is, for as long as conf/, the
code and the files that it names stay as they are. Whether its runs are done, whole and of the data that lie there now
is looked up each time; where anything is missing, the command is planned as ever.
"""

import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kdrun.config.job import Job
from kdrun.config.key import run_dir
from kdrun.core.errors import KdrunError
from kdrun.core.hashing import json_hash
from kdrun.results.kept import digest_of, keep
from kdrun.results.plan import PlannedCell, PlannedData, PlannedFile, TablePlan, on_present_data, plan_in, planned_run
from kdrun.runs.done import done_record
from kdrun.runs.layout import lock_path, outputs_of
from kdrun.runs.record import Record, summary

OUTPUTS, KEEP = "execution.outputs=", "execution.keep_command="


@dataclass(frozen=True)
class Done:
    """What is said of a command line whose runs are all done.

    Args:
        sweep: whether an engine would have made them.
        useless: overrides without effect.
    """

    records: dict[Path, Record]
    sweep: bool
    useless: Sequence[str]

    def told(self) -> int:
        """Say it. Returns the exit code."""
        for line in self.useless:
            print(f"warning: {line}", file=sys.stderr)
        if not self.sweep:
            for directory, record in self.records.items():
                print(f"done already: {summary(directory, record)}")
            return 0
        count = len(self.records)
        print(f"{count} runs, {count} done already", file=sys.stderr)
        print(f"{count} of {count} runs done")
        if count > 1:
            print(shows(outputs_of(next(iter(self.records)))))
        return 0


def shows(outputs: Path) -> str:
    """What to type where a sweep has ended."""
    words = "" if outputs == Path("outputs") else f" {shlex.quote(f'outputs={outputs}')}"
    return f"next: kdrun table{words}; kdrun table{words} format=html writes a page with pictures"


class CommandPlan(TablePlan):
    """Its one cell has the runs that were asked for, in their order."""

    sweep: bool
    useless: list[str]


@dataclass(frozen=True)
class Command:
    """Arguments of train, whose outputs folder can be told from them."""

    arguments: Sequence[str]
    outputs: Path

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Self | None:
        """None: more may follow from it than what is kept tells, as of other configs, plug-ins, or Hydra's own keys."""
        if any(word.startswith(("-", "hydra")) and word not in ("-m", "--multirun") for word in arguments):
            return None
        if any("plugins" in word or "${" in word or KEEP in word for word in arguments):
            return None
        given = [word.removeprefix(OUTPUTS) for word in arguments if word.startswith(OUTPUTS)]
        return cls(arguments, Path(given[-1] if given else "outputs").expanduser())

    @property
    def path(self) -> Path:
        return self.outputs / ".cache" / "commands" / f"{json_hash([os.getcwd(), *self.arguments])}.json"

    @property
    def digest(self) -> str:
        return digest_of(f"{os.getcwd()} {list(self.arguments)}")


def all_done(arguments: Sequence[str]) -> Done | None:
    """None: a run is missing, or what the command comes to is not known."""
    command = Command.of(arguments)
    if command is None or not os.path.exists(command.path):  # before the digest, which reads conf/ and the code
        return None
    plan = plan_in(command.path, command.digest, CommandPlan)
    if plan is None:
        return None
    try:
        (cell,) = on_present_data(plan, command.outputs, most=math.inf).cells
        records: dict[Path, Record] = {}
        for run in cell.runs:
            directory = command.outputs / run.place
            record, _ = done_record(directory, asked=True)
            if record is None or lock_path(directory).exists() or (directory / "checkpoint").exists():
                return None
            records[directory] = record
    except (KdrunError, OSError):  # planning says what is wrong
        return None
    return Done(records, plan.sweep, plan.useless)


def keep_command(arguments: Sequence[str], jobs: Sequence[Job], sweep: bool, useless: Sequence[str]) -> None:
    """Keep what a command line came to, where all that it follows from is known."""
    command = Command.of(arguments)
    if command is None or not jobs or (len(jobs) > 1 and not sweep):
        return
    for job in jobs:
        config, measured = job.config, job.config.evaluate
        if config.plugins or config.written or measured.corruptions is not None or measured.sets:
            return
        if not config.execution.keep_command:
            return
        if Path(config.execution.outputs).expanduser() != command.outputs:
            return
    files: dict[str, PlannedFile | str] = {}
    data: dict[str, PlannedData] = {}
    places = [job.place if job.content is None else run_dir(job.config) for job in jobs]
    runs = [planned_run(job.config, place, {}, files, data) for job, place in zip(jobs, places, strict=True)]
    cell = PlannedCell(
        row="", column="", overrides=list(arguments), given_teacher=False, teacher_temperature=1,
        teacher_as_trained=False, deviations=[], runs=runs,
    )  # fmt: skip
    plan = CommandPlan(cells=[cell], files=files, data=data, sweep=sweep, useless=list(useless))
    keep(command.path, command.digest, plan.model_dump())
