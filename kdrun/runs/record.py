"""record.json and metrics.jsonl: what a run was, and what came out (schema 1)."""

import json
import logging
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from kdrun.core.errors import KdrunError
from kdrun.core.files import write_json
from kdrun.core.paths import HERE
from kdrun.core.sums import sealed, unsealed
from kdrun.core.version import __version__
from kdrun.runs.layout import run_directories
from kdrun.runs.whole import lacks

log = logging.getLogger(__name__)
SCHEMA = 1
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "scikit-learn", "wandb")
Record = dict[str, Any]


class DamagedRecord(KdrunError):
    """A record that is not as it was written."""

    def __init__(self, path: Path, error: Exception) -> None:
        self.why = f"not a readable record ({error})"
        super().__init__(f"{path}: {self.why}; delete it to run this anew")


def read_record(directory: Path) -> Record | None:
    """The record of a run directory, None if there is none; without its checksum, which was compared.

    Raises:
        KdrunError: a damaged one (DamagedRecord), or a newer one.
    """
    path = directory / "record.json"
    try:
        record = json.loads(path.read_text())
        record = unsealed(record, "files") if isinstance(record, dict) else record
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedRecord(path, error) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise KdrunError(f"{path}: record schema {found!r}; this kdrun reads schema {SCHEMA}")
    if not isinstance(record.get("status"), str):
        raise KdrunError(f"{path}: not a whole record (it has no status); delete it to run this anew")
    return record


def write_record(directory: Path, record: Record) -> None:
    write_json(directory / "record.json", sealed(finite(record)))


def finished_record(directory: Path) -> Record | None:
    """The record of a run that is done and whole: each file that it left is there and has its size. Else None."""
    record = read_record(directory)
    if record is None or record["status"] != "done" or lacks(directory, record):
        return None
    return record


def find_records(outputs: Path, every: Callable[[Record], bool] | None = None) -> Iterator[tuple[Path, Record]]:
    """All records below `outputs`/runs, in the order of their paths; damaged ones are named in the log and left out.

    Args:
        every: records of which it is true come first.
    """
    later = []
    for directory in run_directories(outputs):
        try:
            record = read_record(directory)
        except KdrunError as error:
            log.warning("left out: %s", error)
            continue
        if record is not None and (every is None or every(record)):
            yield directory, record
        elif record is not None:
            later.append(directory)  # not the record: there may be thousands
    for directory in later:
        record = read_record(directory)
        if record is not None:
            yield directory, record


def open_record(directory: str | Path) -> tuple[Path, Record]:
    """The whole path of a run and its record. Raises KdrunError: it is no run's, or not done."""
    path = Path(directory).expanduser().resolve()
    record = read_record(path)
    if record is None:
        raise KdrunError(f"{directory}: not a run directory (no record.json)")
    if record["status"] != "done":
        raise KdrunError(f"{directory}: the run is {record['status']}, not done")
    return path, record


def finite(value: Any) -> Any:
    """The same value with null in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


@lru_cache(maxsize=1)
def code_version() -> dict[str, Any]:
    """Version of kdrun, and commit and state of its work tree if it runs from one."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(HERE), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    own = top is not None and Path(top) == HERE.parent
    return {
        "version": __version__,
        "commit": git("rev-parse", "HEAD") if own else None,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")) if own else None,
    }


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    out = {}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out
