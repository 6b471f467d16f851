"""Train one run, or with -m a sweep.

Every job of a sweep is composed and checked before the first one starts; what is wrong is listed, nothing is written.
Hydra then runs the jobs through whatever launcher is installed. Imports no torch until a job is checked.
"""

import logging
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kdrun.cli.help import show_help
from kdrun.cli.plan import Plan, plan, require_possible
from kdrun.cli.useless import without_effect
from kdrun.config.compose import basic, flags_first
from kdrun.config.job import Job, planned, planned_job
from kdrun.config.nodes import to_config
from kdrun.config.resolvers import register_resolvers
from kdrun.config.source import register_source
from kdrun.core import signals
from kdrun.core.errors import KdrunError
from kdrun.core.later import later
from kdrun.core.paths import CONF_DIR
from kdrun.core.ranks import BadLaunch, launched, refuse_ranks
from kdrun.core.slot import Slot, occupied, slot
from kdrun.runs.record import read_record
from kdrun.runs.whole import require_whole

if TYPE_CHECKING:
    from kdrun.cli.carrying import carry_out
    from kdrun.cli.known import all_done, keep_command, shows
    from kdrun.cli.ranks import over_ranks
    from kdrun.runs.place import settled
    from kdrun.training.objective import Objective
    from kdrun.training.runner import run
else:
    carry_out = later("kdrun.cli.carrying", "carry_out")
    all_done, keep_command, shows = later("kdrun.cli.known", "all_done", "keep_command", "shows")
    over_ranks = later("kdrun.cli.ranks", "over_ranks")
    settled = later("kdrun.runs.place", "settled")
    Objective = later("kdrun.training.objective", "Objective")
    run = later("kdrun.training.runner", "run")

log = logging.getLogger("kdrun")
register_resolvers()  # here: a launcher's worker resolves its directory before it calls `job`


_DECIDED: dict[Path, Job] = {}
"""What a sweeper that decides as it goes has had made in this process."""


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def job(composed: DictConfig) -> float:
    """One job of a sweep, as it was planned. A failure is recorded and does not stop the others.

    Returns:
        The objective; NaN where there is none.

    Raises:
        KdrunError: there is none, and a sweeper decides by it: Optuna's and Nevergrad's go on by their
            `max_failure_rate`, Ax's stops.
    """
    hydra = HydraConfig.get()
    overrides = tuple(hydra.overrides.task)
    own, decides = planned_job(overrides), not basic(hydra)
    try:
        objective = Objective.of(composed.get("objective"))
        own = own or settled(Job(to_config(composed), overrides))
        if decides:
            _DECIDED[own.directory] = own
            require_possible([own], objective)
        with occupied(Slot(index=hydra.job.num) if hydra.mode == RunMode.MULTIRUN else slot()):
            record = run(own)
    except (KdrunError, OSError) as error:  # before there was a record to write it into
        log.error("failed: %s: %s", " ".join(overrides) if own is None else own.directory, error)
        if decides:
            raise
        return math.nan
    try:
        return objective.value(record)
    except KdrunError:
        if decides:
            raise
        return math.nan


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 a job failed, 2 a mistake, 128 + n stopped by signal n."""
    return signals.exit_code(lambda: execute(sys.argv[1:] if argv is None else argv))


def execute(arguments: list[str], tell: bool = True) -> int:
    """As `main`. Raises KeyboardInterrupt: stopped by a signal.

    Args:
        tell: say which overrides have no effect; the cells of a table share theirs.
    """
    if {"--help", "-h"} & set(arguments):
        print(show_help(arguments))
        return 0
    try:
        launch = launched()
        if launch is not None and {"-m", "--multirun"} & set(arguments):
            refuse_ranks("-m: a sweep makes several runs", "or give the arguments of one")
    except BadLaunch as error:
        return _refused(error) if error.told else 2
    if launch is not None:
        return over_ranks(launch, arguments, partial(_planned, arguments), partial(_carried_out, arguments, tell))
    try:
        with _planning():
            if tell and (done := all_done(flags_first(arguments))) is not None:
                return done.told()
        asked = _planned(arguments)
    except KdrunError as error:
        return _refused(error)
    return _carried_out(arguments, tell, asked)


def _planning() -> AbstractContextManager[None]:
    return signals.during("planning, before anything was written", "run the same command again")


def _planned(arguments: list[str]) -> Plan | None:
    with _planning():
        return plan(flags_first(arguments))


def _refused(error: KdrunError) -> int:
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2


def _carried_out(arguments: list[str], tell: bool, asked: Plan | None) -> int:
    """Make what was planned; None: what only Hydra knows. Returns the exit code."""
    arguments = flags_first(arguments)
    jobs = None if asked is None else asked.jobs
    useless = without_effect(jobs or ()) if tell else []
    for line in useless:
        print(f"warning: {line}", file=sys.stderr)
    if jobs and (problem := _no_folder(jobs)):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if asked is not None and asked.settings is not None:
        code = carry_out(asked.jobs, asked.settings, asked.search)
    else:
        code = _by_hydra(arguments, jobs)
    if tell and not code and asked is not None:
        if len(asked.jobs) > 1:
            print(shows(asked.jobs[0].outputs))
        keep_command(arguments, asked.jobs, asked.settings is not None, useless)
    return code


def _by_hydra(arguments: list[str], jobs: list[Job] | None) -> int:
    """Have Hydra run the jobs, by its launcher; None: it finds them out itself. Returns the exit code."""
    old = sys.argv
    sys.argv = [old[0], *arguments]
    register_source()
    _DECIDED.clear()
    try:
        with signals.during("starting the next run"), planned(jobs or ()):
            job()
    except signals.Interrupted as stop:
        if jobs is not None and len(jobs) > 1:
            stop.text = f"{stop} ({len(jobs) - len(_undone(jobs))} of {len(jobs)} runs are done)"
        raise
    except SystemExit as stop:  # Hydra has printed why
        _report(list(_DECIDED.values()) if jobs is None else jobs)
        return stop.code if isinstance(stop.code, int) and stop.code else 1
    finally:
        sys.argv = old
    return _report(list(_DECIDED.values()) if jobs is None else jobs)


def _no_folder(jobs: Sequence[Job]) -> str | None:
    """What is wrong where the first run's folder cannot be made. Hydra makes each, and prints a traceback where it
    cannot."""
    directory = jobs[0].directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"execution.outputs: {directory}: no such folder can be made ({error.strerror})"
    return None


def _report(jobs: list[Job]) -> int:
    """Name the runs that are not done."""
    bad = _undone(jobs)
    for line in bad:
        if len(jobs) > 1 or line.startswith("missing"):  # a single job has said it already
            print(line, file=sys.stderr)
    if len(jobs) > 1:
        print(f"{len(jobs) - len(bad)} of {len(jobs)} runs done", file=sys.stderr if bad else sys.stdout)
    return 1 if bad else 0


def _undone(jobs: list[Job]) -> list[str]:
    """A line for each run that is not done."""
    bad: list[str] = []
    for own in jobs:
        try:
            record: dict[str, Any] = read_record(own.directory) or {"status": "missing"}
            if record["status"] == "done":
                require_whole(own.directory, record)
        except KdrunError as error:
            record = {"status": "damaged", "error": {"message": str(error)}}
        if record["status"] != "done":
            why = (record.get("error") or {}).get("message", "")
            bad.append(f"{record['status']}: {own.directory}{': ' + why if why else ''}")
    return bad
