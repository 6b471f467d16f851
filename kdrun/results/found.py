"""The table of whatever runs there are."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdrun.config.names import telling_terms, telling_words
from kdrun.config.values import leaves
from kdrun.core.errors import KdrunError, allowed
from kdrun.results.cell import Cell, given_teacher, logged_names, run_name
from kdrun.results.fill import CurveReader, Curves, logged_curves
from kdrun.results.filters import Filters
from kdrun.results.plan import PlannedRun
from kdrun.results.table import Table
from kdrun.runs.record import Record, find_records


def found_table(
    outputs: Path, metric: str = "test/top1", protocol: str = "last", filters: Filters | None = None,
    keep: bool = False,
) -> Table:  # fmt: skip
    """One row for each distinct configuration among the records, in the order of their names, one column for each
    dataset and number of labels.

    Args:
        filters: which runs; None: all.
        keep: whether cells hold the records and their runs, as those of planned tables do; there may be many thousands.

    Raises:
        KdrunError: there is no such run.
        ConfigError: no run has a key of the filters.
    """
    filters = filters or Filters({})
    groups: dict[str, list[_Row]] = {}
    columns: dict[tuple[str, bool, int | str], str] = {}  # in the order of dataset and number of labels
    records, notes = unique_records(outputs)
    for directory, record in records:
        if not filters.take(record):
            continue
        flat = distinguishing(record)
        count = record["num_labels"]
        column = f"{record['dataset']}, {'all' if count is None else count} labels"
        columns[record["dataset"], isinstance(count, str), count or 10**9] = column  # `16/class` before it is drawn
        alike = groups.setdefault(json.dumps(flat, sort_keys=True), [])
        row = next((row for row in alike if row.takes(record, column)), None)
        if row is None:
            row = _Row(flat)
            alike.append(row)
        row.add(record, column)
        cell = row.cells.setdefault(column, Cell())
        cell.add(record["seed"], record, metric, protocol, directory)
        cell.teachers.update(given_teacher(record, metric))
        if keep:
            cell.records[record["seed"]] = record
            cell.runs[record["seed"]] = _as_planned(directory, record, outputs)
    filters.refuse_unknown("where: ")
    if not groups and filters.wanted:
        told = filters.lacking or "; kdrun status lists those that there are"
        raise KdrunError(f"{outputs}: no run there with {filters}{told}")
    if not groups:
        raise KdrunError(f"{outputs}: no runs there; start one with kdrun")
    rows = [row for alike in groups.values() for row in alike]
    refuse_unknown(metric, protocol, [cell for row in rows for cell in row.cells.values()])
    labels = _labels([flat for alike in groups.values() for flat in _apart(alike)])
    ordered = sorted(zip(labels, rows, strict=True), key=lambda pair: _natural(pair[0]))
    filled = {(label, column): cell for label, row in ordered for column, cell in row.cells.items()}
    title = f"runs in {outputs}{f', {filters}' if filters.wanted else ''}"
    named = [columns[key] for key in sorted(columns)]
    return Table(title, metric, [label for label, _ in ordered], named, filled, protocol=protocol, notes=notes)


def found_curves(outputs: Path, filters: Filters, read: CurveReader, metric: str) -> Curves:
    """Of the same rows, or `<row>, <column>` where there are several columns, what runs have logged of a metric.

    Raises:
        KdrunError: none has.
    """
    table = found_table(outputs, filters=filters, keep=True)
    curves = {}
    for row in table.rows:
        for column in table.columns:
            if seeds := logged_curves(table.cell(row, column).runs.values(), read, metric):
                curves[row if len(table.columns) == 1 else f"{row}, {column}"] = seeds
    if not curves:
        places = [run.place for cell in table.cells.values() for run in cell.runs.values()]
        names = logged_names(outputs / places[0])
        raise KdrunError(f"{outputs}: no run there has logged {metric}{allowed(metric, names)}")
    return curves


def _natural(name: str) -> list[tuple[int, str]]:
    """What orders names by their words, and numbers in them by size."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


def _as_planned(directory: Path, record: Record, outputs: Path) -> PlannedRun:
    net = str((record["nets"].get(record["headline"]) or {}).get("model", record["method"]))
    return PlannedRun(seed=record["seed"], place=directory.relative_to(outputs).as_posix(), net=net, needs={})


class _Row:
    """Runs of one configuration on the same data: what they read is the same as far as it is known, and no seed stands
    twice in a cell.
    """

    def __init__(self, flat: dict[str, Any]) -> None:
        self.flat = flat
        self.cells: dict[str, Cell] = {}
        self.inputs: dict[str, str] = {}
        self.seeds: dict[tuple[str, int], str] = {}
        """Column and seed -> key."""

    def takes(self, record: Record, column: str) -> bool:
        inputs = _inputs(record)
        known = all(self.inputs.get(name, value) == value for name, value in inputs.items())
        return known and (column, record["seed"]) not in self.seeds

    def add(self, record: Record, column: str) -> None:
        self.inputs |= _inputs(record)
        self.seeds[column, record["seed"]] = record["key"]


def _apart(alike: list[_Row]) -> list[dict[str, Any]]:
    """What the labels of rows of one configuration may tell: what they read, else which run they begin with."""
    read = [{f"inputs.{name}": value[:8] for name, value in row.inputs.items()} for row in alike]
    if any(read.count(inputs) > 1 for inputs in read):
        read = [{**inputs, "key": next(iter(row.seeds.values()))} for inputs, row in zip(read, alike, strict=True)]
    return [row.flat | (inputs if len(alike) > 1 else {}) for row, inputs in zip(alike, read, strict=True)]


def _inputs(record: Record) -> dict[str, str]:
    """Dotted key -> hash of what the run read, as far as its record tells."""
    return {name: str(value) for name, value in (record.get("inputs") or {}).items() if value is not None}


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
    for key in [key for key in flat if key.startswith(("method.source.", "method.source_key"))]:
        del flat[key]  # a run that all the other keys describe, seed by seed
    if flat.get("dataset.split_seed") == record["seed"]:
        flat["dataset.split_seed"] = None
    return {**flat, **{f"plugins.{name}": digest[:8] for name, digest in (record.get("plugins") or {}).items()}}


def _labels(flats: list[dict[str, Any]]) -> list[str]:
    """What differs between rows: of `distill kd resnet8` what not all have, and where that is not unique the keys that
    tell rows apart.
    """
    whole = [(flat["method.name"], _loss_of(flat), flat.get("students.0.name") or "") for flat in flats]
    varies = [len(set(parts)) > 1 for parts in zip(*whole, strict=True)]
    bases = [" ".join(part for part, shown in zip(parts, varies, strict=True) if part and shown) for parts in whole]
    alike: dict[str, list[int]] = {}
    for k, base in enumerate(bases):
        alike.setdefault(base, []).append(k)
    out = [""] * len(flats)
    for base, members in alike.items():
        for k, words in zip(members, telling_words([flats[k] for k in members]), strict=True):
            out[k] = " ".join(filter(None, [base, *words]))
    out = [label or " ".join(filter(None, parts)) for label, parts in zip(out, whole, strict=True)]
    count: Counter[str] = Counter()
    for k, label in enumerate(out):  # long values are shortened, and may then be alike
        count[label] += 1
        out[k] = f"{label} #{count[label]}" if count[label] > 1 else label
    return out


def _loss_of(flat: dict[str, Any]) -> str:
    return "+".join(telling_terms(k.split(".")[1] for k in flat if k.startswith("loss.") and k.endswith(".name")))


def flatten(node: Any) -> dict[str, Any]:
    """Dotted keys of plain nodes; items of lists have their number."""
    return dict(leaves(node))
