"""Whether a run is done, and what kills have left of it."""

import logging
from pathlib import Path

from kdrun.config.job import Job
from kdrun.core.errors import KdrunError
from kdrun.core.files import remove, sweep
from kdrun.core.lock import held
from kdrun.runs.layout import lock_path, run_lock
from kdrun.runs.record import DamagedRecord, Record, read_record
from kdrun.runs.whole import altered, lacks, require_whole

log = logging.getLogger(__name__)


def done_record(directory: Path, asked: bool) -> tuple[Record | None, dict[str, str]]:
    """The record of a run that is done; else what of it is damaged, if it was done once, and so is in the way.

    Args:
        asked: whether this very run is asked for; false: another one needs it.

    Raises:
        KdrunError: this very run is asked for, and a file of it is not as it was written. Only of a run that another
            one needs, such a file counts as damage.
    """
    try:
        record = read_record(directory)
        if record is None or record["status"] != "done":
            return None, {}
        if gone := lacks(directory, record):
            return None, gone
        if asked:
            require_whole(directory, record)
            return record, {}
        changed = altered(directory, record)
    except DamagedRecord as error:
        if asked:
            raise
        return None, {"record.json": error.why, "checkpoint": "is of no known run"}
    return (None, changed) if changed else (record, {})


def sweep_run(directory: Path) -> None:
    """Who holds the run's lock removes what killed processes left half written."""
    for folder in (directory, directory / "predictions", directory / "checkpoint"):
        sweep(folder)


def clear(job: Job, done: Record) -> None:
    """Who holds the lock of a run that is done removes what a kill behind its end has left in the directory."""
    sweep_run(job.directory)
    if (spare := _spare(job, done)) is not None:
        remove(spare)


def _spare(job: Job, done: Record) -> Path | None:
    """The checkpoint, where it is there and nobody wants to keep it."""
    kept = job.config.execution.keep_checkpoint or done["config"].get("execution", {}).get("keep_checkpoint")
    place = job.directory / "checkpoint"
    return place if place.exists() and not kept else None


def tidy(job: Job, done: Record) -> None:
    """Away with what a kill between the end of a run and that of its process left: the checkpoint, the lock."""
    directory, lock = job.directory, lock_path(job.directory)
    if (lock.exists() or _spare(job, done) is not None) and not held(lock):
        try:
            with run_lock(directory):
                clear(job, done)
        except (OSError, KdrunError) as error:  # it may be somebody else's, who lets others read alone
            log.debug("%s: left as it is (%s)", directory, error)
