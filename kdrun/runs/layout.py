"""The folders of outputs: where runs, their locks and artifacts lie."""

from pathlib import Path

from kdrun.core.lock import Lock
from kdrun.runs.record import Record, read_record


def directory_of_key(outputs: Path, key: str | None) -> Path | None:
    """The directory of a run."""
    found = next(outputs.glob(f"runs/*/*/*/s*-{key}/record.json"), None)
    return None if found is None else found.parent


def run_lock(directory: Path) -> Lock:
    """Who holds it may write into the run directory."""
    return Lock(directory.with_name(directory.name + ".lock"))


def finished(directory: Path) -> Record | None:
    """The record of a run that is done and has its weights, else None."""
    record = read_record(directory)
    if record is None or record["status"] != "done":
        return None
    return record if all((directory / f"{net}.safetensors").is_file() for net in record["nets"]) else None


def made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def outputs_of(directory: Path) -> Path:
    return directory.parents[4]
