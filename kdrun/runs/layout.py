"""The folders of outputs: where runs and their locks lie. A run is given its place by `kdrun.config.key`."""

import re
from pathlib import Path
from typing import Literal

from kdrun.core.errors import KdrunError
from kdrun.core.lock import Lock

RUNS = "runs/*/*/*"
"""`runs/<method>/<dataset>/n<labels>`, which the directories of runs lie in."""

Checkpoint = Literal["last", "best_on_val"]
"""The weights of a run's last step, or of its best evaluation on validation images."""
SUFFIXES: dict[Checkpoint, str] = {"last": "", "best_on_val": ".best"}


def weights_of(net: str, checkpoint: Checkpoint = "last") -> str:
    """The file of a network in its run's directory."""
    return f"{net}{SUFFIXES[checkpoint]}.safetensors"


def run_directories(outputs: Path) -> list[Path]:
    """The directories with a record, in the order of their paths."""
    return [path.parent for path in sorted(outputs.glob(f"{RUNS}/*/record.json"))]


def directory_of_key(outputs: Path, key: str | None) -> Path | None:
    """The directory of a run."""
    found = next(outputs.glob(f"{RUNS}/s*-{key}/record.json"), None)
    return None if found is None else found.parent


def place_of(run: str, outputs: str | Path) -> Path:
    """Of a directory, or of a run below `outputs` by its key or as it is listed: `s0-<key>`, `<method>/.../s0-<key>`.

    Raises:
        KdrunError: no run is called so.
    """
    named = re.fullmatch(r"(?:(?:[^/]+/){3})?(?:s\d+-)?([0-9a-f]{12})/?", run)
    if named is None or Path(run).exists():
        return Path(run)
    found = directory_of_key(Path(outputs).expanduser(), named[1])
    if found is None:
        raise KdrunError(f"run: no run with the key {named[1]} below {outputs}; give the directory that it lies in")
    return found


def outputs_of(directory: Path) -> Path:
    """The outputs folder that a run directory lies in."""
    return directory.parents[4]


def lock_path(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def run_lock(directory: Path, wait: bool = True) -> Lock:
    """Who holds it may write into the run directory."""
    return Lock(lock_path(directory), wait)
