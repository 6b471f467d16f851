"""What is written of a run around its training: the record as it begins and as it fails, and log.txt."""

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kdrun.config.job import Job
from kdrun.config.key import named_files, plugins_of
from kdrun.config.nodes import dump
from kdrun.config.run import RunConfig
from kdrun.core.errors import KdrunError
from kdrun.core.files import remove, write_text
from kdrun.core.hashing import content_hash
from kdrun.core.lock import Lock
from kdrun.core.peers import RankFailed
from kdrun.runs.record import SCHEMA, Record, code_version, package_versions, read_record, write_record
from kdrun.training.window import LOSS

log = logging.getLogger(__name__)
SAID: set[str] = set()  # since the run that was asked for began
GOES_ON = "goes on with"
FALLEN = 0.9
"""Of a loss of one batch, what is left at most; more than a half where its targets are soft. One that begins at nothing
waits for something, such as confident guesses."""


def new_record(job: Job, ranks: int) -> Record:
    """The record of a run as it begins, or goes on, with so many ranks."""
    config = job.config
    old = read_record(job.directory) or {}
    goes_on = (job.directory / "checkpoint").exists()
    record: Record = {
        "schema": SCHEMA,
        "status": "running",
        "key": job.key,
        "method": config.method.name,
        "dataset": config.dataset.name,
        "num_labels": config.dataset.num_labels,
        "seed": config.seed,
        "config": _write_config(config, job.directory),
        "overrides": list(job.overrides),
        "code": code_version(),
        "packages": package_versions(),
        "plugins": dict(plugins_of(config)),
        "inputs": {key: content_hash(path, key, file) for key, path, file in named_files(config)},
        "device": None,
        "precision": config.schedule.precision,
        "threads": old.get("threads") if goes_on else None,
        "world_size": ranks,
        "backend": None,
        "batch_norm": None,
        "steps": None,
        "seconds": {},
        "overview": [],
        "split": old.get("split") or {},
        "class_names": None,
        "requires": {},
        "artifacts": (old.get("artifacts") or {}) if goes_on else {},
        "nets": {},
        "headline": None,
        "metrics": {},
        "best_on_val": None,
        "corruptions": None,
        "sets": {},
        "files": {},
        "warnings": [line for line in old.get("warnings") or () if goes_on and line.startswith(GOES_ON)],
        "error": None,
    }
    before = old.get("world_size") or 1
    if goes_on and before != ranks:
        record["warnings"].append(f"{GOES_ON} {_ranks(ranks)}, with {before} before")
        log.warning("%s", record["warnings"][-1])
    return record


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"


def _write_config(config: RunConfig, directory: Path) -> dict[str, Any]:
    node = dump(config)
    write_text(directory / "config.yaml", yaml.safe_dump(node, sort_keys=False, allow_unicode=True))
    return node


def note_failure(
    directory: Path, record: Record, error: Exception, handler: logging.Handler | None, lock: Lock | None
) -> None:
    """Into the record, the log and log.txt, where this process holds the run's lock."""
    theirs = error.failure if isinstance(error, RankFailed) else None
    kind = type(error).__name__ if theirs is None else theirs.kind
    record.update(status="failed", error={"type": kind, "message": str(error)})
    if lock is None:
        return
    log.error("failed: %s: %s%s", directory, "" if isinstance(error, KdrunError | OSError) else f"{kind}: ", error)
    if handler is not None:
        trace = "".join(traceback.format_exception(error)) if theirs is None else theirs.trace
        handler.handle(logging.makeLogRecord({"levelname": "ERROR", "msg": trace}))
    if "schema" in record and not lock.lost:
        try:
            write_record(directory, record)
        except OSError as error:  # the disk may be what failed
            log.error("%s: the record could not be written either (%s)", directory, error.strerror)


def remove_checkpoint(directory: Path) -> None:
    """The run is done without it: where it cannot be removed, that is said."""
    try:
        remove(directory / "checkpoint")
    except OSError as error:
        log.warning("%s: could not be removed (%s)", directory / "checkpoint", error.strerror)


def told_of_one_batch(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how far the losses of one batch have come down. What is to be warned of: that they have not.

    Args:
        lines: those of metrics.jsonl.
    """
    windows = [{key: value for key, value in line.items() if key.startswith(LOSS)} for line in lines]
    first, *_, last = [window for window in windows if window] or [{}, {}]
    told = [f"{key.removeprefix(LOSS)} {first[key]:.4g} -> {last[key]:.4g}" for key in first]
    log.info("the same batch again and again: %s (means of the first and the last steps logged)", ", ".join(told))
    stayed = [key.removeprefix(LOSS) for key, value in first.items() if last[key] > FALLEN * value > 0]
    if not stayed:
        return []
    return [f"on one batch has hardly come down: {', '.join(stayed)}; is it right? Or give more steps (debug.steps)"]


def say(level: int, line: str) -> None:
    """Once, where a run and what it needs have it in common: its log.txt has theirs."""
    if line not in SAID:
        SAID.add(line)
        log.log(level, "%s", line)


@contextmanager
def log_file(directory: Path) -> Iterator[logging.Handler]:
    """What is said in this context stands in log.txt too."""
    directory.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(directory / "log.txt", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("kdrun").addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger("kdrun").removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """log.txt. Where its disk is full, the run says so once; logging would print a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass
