"""The pictures of a report: every seed, the metric over labels and over training, reliability."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.core.errors import KdrunError
from kdrun.core.later import later
from kdrun.results.cell import scaled
from kdrun.results.fill import CurveReader
from kdrun.results.plots import curves, labels, seeds
from kdrun.results.plots.options import RunOptions
from kdrun.results.report.page import svg
from kdrun.results.table import Table

if TYPE_CHECKING:
    from kdrun.results.plots import reliability
    from kdrun.results.plots.judged import Judged, judged
    from kdrun.runs.finished import FinishedRun
else:
    reliability = later("kdrun.results.plots.reliability")
    judged = later("kdrun.results.plots.judged", "judged")
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")

log = logging.getLogger(__name__)
MOST_DIAGRAMS = 12  # reliability diagrams
MOST_CURVES = 12  # rows of a picture; more cannot be told apart
MOST_ROWS = 60  # of a picture of seeds


def of_seeds(table: Table) -> str:
    """A picture for each column."""
    columns: dict[str, dict[str, seeds.Dots]] = {}
    for (row, column), cell in table.cells.items():
        theirs = table.theirs(row, column)
        if cell.values and row in table.rows[:MOST_ROWS]:
            dots = seeds.Dots(scaled(cell.values.values(), table.percent), None if theirs is None else theirs.mean)
            columns.setdefault(column, {})[row] = dots
    out = [
        svg(partial(seeds.draw, column, dots, table.metric), f"{table.metric} of every seed: {column}")
        for column, dots in columns.items()
    ]
    return figures(out) + _only(len(table.rows), MOST_ROWS, "rows")


def of_labels(table: Table) -> str:
    """Where columns of one dataset differ in the number of labels."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for (row, _), cell in table.cells.items():
        record = next(iter(cell.records.values()), None)
        if cell.values and record is not None and isinstance(record.get("num_labels"), int):
            points = found.setdefault(str(record.get("dataset")), {}).setdefault(row, {})
            points.setdefault(record["num_labels"], []).extend(scaled(cell.values.values(), table.percent))
    drawn: dict[str, dict[str, dict[int, list[float]]]] = {}
    for dataset, rows in found.items():
        shown = {row: points for row, points in rows.items() if len(points) > 1}
        if shown:
            drawn[f"{dataset}: {table.metric}; "] = shown
    return _of_rows(drawn, labels.draw, table.metric)


def of_curves(table: Table, read: CurveReader) -> str:
    drawn: dict[str, dict[str, curves.Band]] = {}
    for column in table.own_columns:
        bands: dict[str, curves.Band] = {}
        for row in table.rows:
            cell = table.cell(row, column)
            found = [quietly(read, run.place, table.metric_of(row, column)) for run in cell.runs.values()]
            logged = [curve for curve in found if curve]
            if logged:
                bands[row] = curves.band(logged, "range")
        if any(len(one.steps) > 1 for one in bands.values()):
            drawn[f"{column}: "] = bands
    return _of_rows(drawn, curves.draw, table.metric)


def _of_rows(drawn: Mapping[str, Mapping[str, Any]], draw: Callable[..., None], metric: str) -> str:
    """A picture for each beginning of a title, of what its first rows have."""
    out = []
    for begin, rows in drawn.items():
        part = dict(list(rows.items())[:MOST_CURVES])
        out.append(svg(partial(draw, part, metric), f"{begin}mean, least and greatest over seeds"))
    return figures(out) + _only(max(map(len, drawn.values()), default=0), MOST_CURVES, "rows of each picture")


def of_reliability(table: Table, outputs: Path) -> str:
    """Of the first finished seed of each cell that has kept its predictions; each teacher once. All have the same axes,
    and the script sets those of two rows side by side.
    """
    out: list[str] = []
    teachers: list[Judged] = []
    more = False
    for row, column, seed, networks in _with_predictions(table, outputs):
        if len(out) >= MOST_DIAGRAMS:
            more = True
            break
        at = row if len(table.columns) == 1 else f"{row}, {column}"
        for name, one in networks.items():
            if name != "teacher":
                place = f'data-row="{escape(row)}" data-column="{escape(column)}"'
                out.append(f"<div {place}>{_diagram(f'{at}, seed {seed}', one)}</div>")
            elif not any(one[0].equal(other[0]) and one[1].equal(other[1]) for other in teachers):
                teachers.append(one)
                out.append(_diagram(f"teacher of {at}", one))
    told = f"The first {MOST_DIAGRAMS} diagrams; <code>kdrun plot reliability</code> draws any run." if more else ""
    return figures(out) + (f'<p class="note">{told}</p>' if told else "")


def _diagram(name: str, one: "Judged") -> str:
    return svg(partial(reliability.draw, {name: one}), f"Reliability on test images: {name}")


def _with_predictions(table: Table, outputs: Path) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    for (row, column), cell in table.cells.items():
        for seed, run in cell.runs.items():
            if has_predictions(table, row, column, seed, outputs):
                opened = quietly(FinishedRun.open, outputs / run.place)
                networks = opened and quietly(judged, opened, RunOptions(run=str(opened.directory)))
                if networks:
                    yield row, column, seed, networks
                    break


def has_predictions(table: Table, row: str, column: str, seed: int, outputs: Path) -> bool:
    """Whether the run of this seed is done, and has kept what its headline network said of the test images."""
    cell = table.cells[row, column]
    record = cell.records.get(seed)
    if record is None or record["status"] != "done":
        return False
    return (outputs / cell.runs[seed].place / "predictions" / f"test-{record.get('headline')}.npz").is_file()


def figures(drawn: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(drawn)}</div>' if len(drawn) > 1 else "".join(drawn)


def quietly(read: Callable[..., Any], *arguments: Any) -> Any:
    """None for a run whose files cannot be read, or are not as they were written; which is said."""
    try:
        return read(*arguments)
    except KdrunError as error:
        log.warning("left out: %s", error)
        return None


def _only(count: int, most: int, what: str) -> str:
    return f'<p class="note">The first {most} of {count} {what}.</p>' if count > most else ""
