"""Plug-ins whose file is not the one any more that finished runs were made with."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from kdrun.results.plan import PlannedRun, TablePlan
from kdrun.runs.record import Record, find_records


def edited_plugins(plan: TablePlan, missing: Iterable[PlannedRun], outputs: Path) -> list[str]:
    """A line for each plug-in that has changed since runs of a plan were finished, which are missing for that reason.

    Args:
        missing: runs of the plan that are not there.
    """
    asking = {run.place for cell in plan.cells if any("plugins" in w for w in cell.overrides) for run in cell.runs}
    wanted = {_keyless(Path(run.place)) for run in missing if run.place in asking}
    old: dict[str, list[str]] = {}
    for directory, record in find_records(outputs, say=lambda line: None) if wanted else ():
        if record["status"] == "done" and _keyless(directory.relative_to(outputs)) in wanted:
            for file in _changed(record):
                old.setdefault(file, []).append(directory.name)
    return [
        f"{file} is not what {len(names)} finished runs were made with ({', '.join(names[:4])}"
        f"{', …' * (len(names) > 4)}): they do not count, and are made anew; or put the file back"
        for file, names in old.items()
    ]


def _keyless(place: Path) -> str:
    return str(place).rpartition("-")[0]


def _changed(record: Record) -> list[str]:
    """The files of its plug-ins, as they were given, that lie there with another content."""
    hashes: Mapping[str, str] = record.get("plugins") or {}
    return [
        given
        for given in record["config"].get("plugins") or []
        if (file := Path(given).expanduser()).is_file()
        and file.stem in hashes
        and hashlib.sha256(file.read_bytes()).hexdigest() != hashes[file.stem]
    ]
