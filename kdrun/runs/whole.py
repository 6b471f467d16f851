"""What a finished run left, and whether it still stands there byte for byte: `files` of its record."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdrun.core.errors import KdrunError
from kdrun.core.files import remove
from kdrun.core.sums import Sum, flaws, sums_of
from kdrun.runs.layout import SUFFIXES

log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
CORRUPTIONS = "corruptions.json"
ADDED = {CORRUPTIONS}
"""What was measured of the finished run: if it is damaged, it is measured anew."""


def results(directory: Path, nets: Iterable[str]) -> dict[str, Sum]:
    """The weights and predictions of a run by their names in its directory, as they are now."""
    weights = [f"{net}{suffix}.safetensors" for net in nets for suffix in SUFFIXES.values()]
    predictions = sorted(f"predictions/{path.name}" for path in directory.glob("predictions/[!.]*.npz"))
    names = [*weights, "method.safetensors", *predictions]
    return sums_of(directory, [name for name in names if (directory / name).is_file()])


def lacks(directory: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """File -> what is wrong, of those without which the run is not done: gone, or of another size."""
    known = record.get("files")
    if known is None:  # from before there were checksums
        weights = [f"{net}.safetensors" for net in record["nets"]]
        return {name: "is gone" for name in weights if not (directory / name).is_file()}
    return flaws(directory, {name: known[name] for name in known if name not in ADDED}, content=False)


def altered(directory: Path, record: Mapping[str, Any], *names: str) -> dict[str, str]:
    """As `lacks`, of all files, or of these, that are not as they were written: their sha256 is compared."""
    known = record.get("files")
    if known is None:
        _tell_once()
        return {}
    return flaws(directory, {name: known[name] for name in known if name in names or (not names and name not in ADDED)})


def told(directory: Path, found: Mapping[str, str]) -> str:
    """The first of them, as a line."""
    name, flaw = next(iter(found.items()))
    return f"{directory / name}: {flaw}"


def require_whole(directory: Path, record: Mapping[str, Any], *names: str) -> None:
    """Raises KdrunError where one of these files of a finished run, by default any, is not as it was written."""
    if found := altered(directory, record, *names):
        raise KdrunError(f"{told(directory, found)}; delete {directory}, the same command trains this run anew")


def discard(directory: Path, names: Iterable[str]) -> None:
    """Clear the way for what is to be written there."""
    for path in (directory / name for name in names):
        if path.parent != directory and path.parent.is_file():
            remove(path.parent)
        remove(path)


_SAID: list[str] = []


def _tell_once() -> None:
    if not _SAID:
        _SAID.append("")
        log.info("runs from before there were checksums are read as they are: nothing tells whether they have changed")
