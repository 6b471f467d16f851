"""record.json and metrics.jsonl: what a run was, and what came out (schema 1)."""

import json
import logging
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.files import reason, regular, write_json
from kdrun.core.lock import held
from kdrun.core.paths import HERE
from kdrun.core.sums import sealed, unsealed
from kdrun.core.version import __version__
from kdrun.runs.layout import lock_path, place_of, run_directories
from kdrun.runs.shape import fault
from kdrun.runs.whole import lacks

log = logging.getLogger(__name__)
SCHEMA = 1
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "scikit-learn", "wandb")
Record = dict[str, Any]


class DamagedRecord(KdrunError):
    """A record that is not as it was written."""

    def __init__(self, path: Path, error: Exception) -> None:
        self.why = f"not a readable record ({reason(error)})"
        super().__init__(f"{path}: {self.why}; delete it to run this anew")


def read_record(directory: Path) -> Record | None:
    """The record of a run directory, None if there is none; without its checksum, which was compared.

    Raises:
        KdrunError: it cannot be read or is not as it was written (DamagedRecord), is of another schema, or is not whole
            (see `kdrun.runs.shape`).
    """
    path = directory / "record.json"
    try:
        record = json.loads(regular(path).read_bytes().decode(), parse_constant=_no_number)
        record = unsealed(record, "files") if isinstance(record, dict) else record
    except FileNotFoundError:
        return None
    except NotADirectoryError:  # a run's directory that is a file
        return None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise DamagedRecord(path, error) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise KdrunError(f"{path}: record schema {repr(found)[:40]}; this kdrun reads schema {SCHEMA}")
    if (wrong := fault(record)) is not None:
        raise KdrunError(f"{path}: not a whole record ({wrong}); delete it to run this anew")
    return record


def _no_number(literal: str) -> None:
    raise ValueError(f"{literal} is no number of JSON")


def write_record(directory: Path, record: Record) -> None:
    write_json(directory / "record.json", sealed(finite(record)))


def finished_record(directory: Path) -> Record | None:
    """The record of a run that is done and whole: each file that it left is there and has its size. Else None."""
    record = read_record(directory)
    if record is None or record["status"] != "done" or lacks(directory, record):
        return None
    return record


def state_of(directory: Path, record: Record) -> str:
    """done, failed, running, or stopped: it says that it runs, and no process does."""
    if record["status"] == "running" and not held(lock_path(directory)):
        return "stopped"
    return str(record["status"])


def summary(directory: Path, record: Record) -> str:
    """One line: the directory and the headline figures."""
    net = record["headline"]
    keys = (f"val/{net}/top1", f"test/{net}/top1")
    shown = [f"{key} {value:.4f}" for key in keys if isinstance(value := record["metrics"].get(key), float | int)]
    return f"{directory} ({', '.join(shown)})"


def find_records(
    outputs: Path, every: Callable[[Record], bool] | None = None, say: Callable[[str], object] = log.warning
) -> Iterator[tuple[Path, Record]]:
    """All records below `outputs`/runs, in the order of their paths.

    Args:
        every: records of which it is true come first.
        say: is told a line for each record that is left out, because it is not whole.
    """
    later = []
    for directory in run_directories(outputs):
        record = _told_record(directory, say)
        if record is not None and (every is None or every(record)):
            yield directory, record
        elif record is not None:
            later.append(directory)  # not the record: there may be thousands
    for directory in later:
        record = _told_record(directory, say)
        if record is not None:
            yield directory, record


def _told_record(directory: Path, say: Callable[[str], object]) -> Record | None:
    try:
        return read_record(directory)
    except KdrunError as error:
        say(f"left out: {error}")
        return None


def open_record(directory: str | Path, outputs: str | Path = "outputs") -> tuple[Path, Record]:
    """The whole path of a run, given as `place_of` takes it, and its record. Raises KdrunError: no run, or not done."""
    path = place_of(str(directory), outputs).expanduser().resolve()
    record = read_record(path)
    if record is None:
        raise KdrunError(f"{directory}: not a run directory (no record.json)")
    if record["status"] != "done":
        raise KdrunError(f"{directory}: the run is {record['status']}, not done")
    return path, record


def open_records(directories: Sequence[str]) -> list[tuple[Path, Record]]:
    """As `open_record` of each. Raises ConfigError where two are the same run."""
    opened = [open_record(directory) for directory in directories]
    seen: set[Path] = set()
    for given, (place, _) in zip(directories, opened, strict=True):
        if place in seen:
            raise ConfigError(f"run: {given}: given twice; name each run once")
        seen.add(place)
    return opened


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
