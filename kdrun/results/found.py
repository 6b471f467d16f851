"""The table of whatever runs there are."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun.core.errors import KdrunError
from kdrun.results.cell import Cell, given_teacher, run_name
from kdrun.results.table import Table
from kdrun.runs.record import Record, find_records


def found_table(outputs: Path, metric: str = "test/top1", protocol: str = "last") -> Table:
    """One row for each distinct configuration among the records, one column for each dataset and number of labels."""
    groups: dict[str, tuple[dict[str, Any], dict[str, Cell]]] = {}
    columns: dict[tuple[str, bool, int | str], str] = {}  # in the order of dataset and number of labels
    records, notes = unique_records(outputs)
    for directory, record in records:
        flat = distinguishing(record)
        count = record["num_labels"]
        column = f"{record['dataset']}, {'all' if count is None else count} labels"
        columns[record["dataset"], isinstance(count, str), count or 10**9] = column  # `16/class` before it is drawn
        _, cells = groups.setdefault(json.dumps(flat, sort_keys=True), (flat, {}))
        cell = cells.setdefault(column, Cell())
        cell.add(record["seed"], record, metric, protocol, directory)
        cell.teachers.update(given_teacher(record, metric))
    if not groups:
        raise KdrunError(f"{outputs}: no runs there; start one with kdrun")
    refuse_unknown(metric, protocol, [cell for _, cells in groups.values() for cell in cells.values()])
    labels = _labels([flat for flat, _ in groups.values()])
    rows = zip(labels, (row for _, row in groups.values()), strict=True)
    filled = {(label, column): cell for label, row in rows for column, cell in row.items()}
    title, named = f"runs in {outputs}", [columns[key] for key in sorted(columns)]
    return Table(title, metric, labels, named, filled, protocol=protocol, notes=notes)


def refuse_unknown(metric: str, protocol: str, cells: Sequence[Cell]) -> None:
    """Raises KdrunError where runs are done, and none has the metric: a table of it would be empty."""
    if not any(cell.values for cell in cells):
        for reason in (cell.without[0] for cell in cells if cell.without):
            raise KdrunError(f"metric={metric} protocol={protocol}: {reason}")


def unique_records(outputs: Path) -> tuple[Iterator[tuple[Path, Record]], list[str]]:
    """Each run once, and remarks that are complete when the last record was taken.

    Of two directories with one run key (copies, say) a finished run counts, else the first; what is not whole is left
    out.
    """
    notes: list[str] = []

    def each() -> Iterator[tuple[Path, Record]]:
        seen: dict[str, tuple[Path, str]] = {}
        for directory, record in find_records(outputs, lambda r: bool(r["status"] == "done"), notes.append):
            if record["key"] in seen:
                first, status = seen[record["key"]]
                notes.append(
                    f"two records of one key: {run_name(first)} ({status}) counts, "
                    f"{run_name(directory)} ({record['status']}) does not"
                )
            else:
                seen[record["key"]] = directory, record["status"]
                yield directory, record

    return each(), notes


def distinguishing(record: Record) -> dict[str, Any]:
    """The flat config without what a cell or its seeds share."""
    config = record["config"]
    flat = flatten(
        {k: v for k, v in config.items() if k not in ("seed", "execution", "evaluate", "tracker", "plugins")}
    )
    for key in ("dataset.num_labels", "dataset.name"):
        flat.pop(key, None)
    if flat.get("dataset.split_seed") == record["seed"]:
        flat["dataset.split_seed"] = None
    return {**flat, **{f"plugins.{name}": digest[:8] for name, digest in (record.get("plugins") or {}).items()}}


def _labels(flats: list[dict[str, Any]]) -> list[str]:
    """`distill kd resnet8`, and where that is not unique the keys that differ."""
    base: dict[str, list[int]] = {}
    for k, flat in enumerate(flats):
        terms = [key.split(".")[1] for key in flat if key.startswith("loss.") and key.endswith(".name")]
        named = [t for t in terms if t != "ce"] or terms
        label = f"{flat['method.name']} {'+'.join(named)} {flat.get('students.0.name', '')}".strip()
        base.setdefault(label, []).append(k)
    out = [""] * len(flats)
    for label, alike in base.items():
        differing = differing_keys([flats[k] for k in alike])
        for k in alike:
            out[k] = " ".join([label, *(f"{key}={flats[k][key]}" for key in differing if key in flats[k])])
    return out


def differing_keys(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that not all of them have with the same value."""
    keys = {key for flat in flats for key in flat}
    return sorted(key for key in keys if len({json.dumps(flat.get(key)) for flat in flats}) > 1)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of plain nodes; items of lists have their number."""
    out: dict[str, Any] = {}

    def walk(value: Any, at: str) -> None:
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            out[at] = value
            return
        for key, item in items:
            walk(item, f"{at}.{key}" if at else str(key))

    walk(node, prefix)
    return out
