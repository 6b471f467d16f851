"""Where a run lies: in the place of its key, unless that holds a run on other data than there are now."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdrun.config.job import Job
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.later import later
from kdrun.runs.record import Record, read_record

if TYPE_CHECKING:
    from kdrun.data.load import content_of
else:
    content_of = later("kdrun.data.load", "content_of")


def settled(job: Job) -> Job:
    """The same job, or where its place holds a run on other data, the one on the data that are there now.

    Names and sizes of files are in the run key, their content is not: it is known when they have been read. A run that
    is done or has a checkpoint keeps its place; what is read now, anew only if the files were touched, is compared.
    """
    if job.content is not None:
        return job
    try:
        theirs = trained_on(job.directory)
        if theirs is None:
            return job
        ours = content_of(job.config.dataset.offline(), job.outputs)
    except ConfigError:  # the data are not there, which a finished run does not need
        return job
    return job if ours is None or ours == theirs else replace(job, content=ours)


def trained_on(directory: Path) -> str | None:
    """Hash of the data of the run that holds this place; None: nobody does, or nobody knows."""
    try:
        record = read_record(directory)
    except KdrunError:  # whoever reads it next says so
        return None
    if record is None or not (record["status"] == "done" or (directory / "checkpoint").exists()):
        return None
    return content_in(record)


def content_in(record: Record) -> str | None:
    """Hash of the data that a record is about; None: an older record, or they were streamed."""
    content = (record.get("inputs") or {}).get("dataset")
    return content if isinstance(content, str) else None
