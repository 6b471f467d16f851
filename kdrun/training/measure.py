"""What is measured of a finished run: corrupted images and other test sets."""

import logging
from pathlib import Path

from kdrun.config.job import Job
from kdrun.core.files import write_json
from kdrun.core.sums import sums_of
from kdrun.data.arrays import Arrays
from kdrun.data.load import load_dataset
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import Record, finite
from kdrun.runs.whole import CORRUPTIONS, altered, discard, told
from kdrun.training.assembly import Assembly
from kdrun.training.corruptions import Corruptions
from kdrun.training.corruptions import summary as summary_of_corruptions
from kdrun.training.shifted import ShiftedSet, shifted_sets

log = logging.getLogger(__name__)


def corruptions_of(folder: str, arrays: Arrays) -> Corruptions:
    return Corruptions(folder, arrays.test_images.shape[1:], arrays.num_classes)


def with_corruptions(job: Job, folder: str) -> Record:
    """The record of a finished run with what its networks and its teacher do on corrupted images.

    All cells are in corruptions.json, their means among the metrics.
    """
    corruptions = corruptions_of(folder, load_dataset(job.config.dataset, job.outputs, pixels=False))
    run = FinishedRun.open(job.directory)
    with run.amended() as record:
        if damage := altered(run.directory, record, CORRUPTIONS):
            log.warning("%s; it is measured anew", told(run.directory, damage))
            discard(run.directory, damage)
        elif _measured(record, record.get("corruptions"), corruptions, job.outputs):
            return record
        opened = Assembly.restored(run, job.config.execution)
        found = corruptions.evaluate(opened.logits, opened.device, **opened.evaluation)
        write_json(run.directory / CORRUPTIONS, finite(found))
        if "files" in record:
            record["files"] |= sums_of(run.directory, [CORRUPTIONS])
        record["metrics"] |= summary_of_corruptions(found)
        record["corruptions"] = corruptions.hash
        record["inputs"] = {**record.get("inputs", {}), corruptions.key: corruptions.content(job.outputs)}
    log.info("corruptions: %s (%s)", run.directory / CORRUPTIONS, folder)
    return record


def with_sets(job: Job) -> Record:
    """The record of a finished run with what its networks and its teacher do on other test sets."""
    config = job.config
    arrays = load_dataset(config.dataset, job.outputs, pixels=False)
    run = FinishedRun.open(job.directory)
    with run.amended() as record:
        known = record.get("sets") or {}
        asked = shifted_sets(config.evaluate, config.dataset, arrays.class_names)
        missing = [part for part in asked if not _measured(record, known.get(part.name), part, job.outputs)]
        if not missing:
            return record
        opened = Assembly.restored(run, config.execution)
        for part in missing:
            record["metrics"] |= finite(part.evaluate(opened.logits, opened.device, job.outputs, **opened.evaluation))
            record["sets"] = {**(record.get("sets") or {}), part.name: part.hash}
            record["inputs"] = {**record.get("inputs", {}), part.key: part.content(job.outputs)}
            log.info(
                "%s: %d images of %d classes, top1 %.4f", part.name, len(part.files), len(part.classes),
                record["metrics"][f"{part.name}/{record['headline']}/top1"],
            )  # fmt: skip
    return record


def _measured(record: Record, known: object, part: Corruptions | ShiftedSet, outputs: Path) -> bool:
    """Whether a record holds the figures of these images, by names and sizes, and by content where it tells."""
    theirs = (record.get("inputs") or {}).get(part.key)
    return known == part.hash and (theirs is None or theirs == part.content(outputs))
