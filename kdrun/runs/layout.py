"""The folders of outputs: where runs, their locks and artifacts lie."""

import re
from pathlib import Path

from kdrun.core.errors import KdrunError
from kdrun.core.lock import Lock
from kdrun.runs.record import Record, read_record


def directory_of_key(outputs: Path, key: str | None) -> Path | None:
    """The directory of a run."""
    found = next(outputs.glob(f"runs/*/*/*/s*-{key}/record.json"), None)
    return None if found is None else found.parent


def place_of(run: str, outputs: str | Path) -> Path:
    """Of a directory, or of the key of a run below `outputs`. Raises KdrunError for a key that no run has."""
    if Path(run).exists() or not re.fullmatch("[0-9a-f]{12}", run):
        return Path(run)
    found = directory_of_key(Path(outputs).expanduser(), run)
    if found is None:
        raise KdrunError(f"run: no run with the key {run} below {outputs}; give its directory, or outputs=<folder>")
    return found


def opened(directory: str | Path) -> tuple[Path, Record]:
    """The whole path of a run and its record. Raises KdrunError: it is no run's, or not done."""
    path = Path(directory).expanduser().resolve()
    record = read_record(path)
    if record is None:
        raise KdrunError(f"{directory}: not a run directory (no record.json)")
    if record["status"] != "done":
        raise KdrunError(f"{directory}: the run is {record['status']}, not done")
    return path, record


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
