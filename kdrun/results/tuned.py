"""Rows that are tuned: of its candidates each column shows the one that does best on validation images."""

from collections.abc import Callable
from contextlib import suppress
from statistics import mean

from kdrun.core.errors import KdrunError
from kdrun.results.cell import groups_of, value_of, where
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan
from kdrun.results.spec import TableConfig
from kdrun.runs.metric import HIGHER, Metric
from kdrun.runs.record import Record


def best_candidates(
    spec: TableConfig, plan: TablePlan, read: Callable[[PlannedRun], Record | None]
) -> tuple[list[PlannedCell], list[str]]:
    """One planned cell for each place, and what was chosen in words. The test images choose nothing.

    The figure is the table's metric on validation images at the end of a run, its mean over the seeds that all
    candidates of the cell have finished; of equal ones the first candidate counts.

    Args:
        read: record of a run; None: there is none, or none that can be read.
    """
    metric = Metric("val", None, Metric.parse(spec.metric).name)
    sign = 1 if metric.name in HIGHER else -1
    places: dict[tuple[str, str], list[PlannedCell]] = {}
    for cell in plan.cells:
        places.setdefault((cell.row, cell.column), []).append(cell)
    chosen, notes = [], {}
    for place, cells in places.items():
        best, said = cells[0], []
        if len(cells) > 1:
            found = [_figures(cell, str(metric), read) for cell in cells]
            seeds = set.intersection(*(set(figures) for figures in found))
            if seeds:
                best = max(zip(cells, found, strict=True), key=lambda pair: sign * mean(pair[1][k] for k in seeds))[0]
                said.append(f"{' '.join(best.candidate or ['as it is'])}{_of(seeds, best)}")
            else:
                said.append("nothing yet, no seed has all candidates done")
        chosen.append(best)
        notes[place] = said
    rows, columns = list(spec.rows), list(spec.columns)
    lines = [f"  {where(at, [*rows, ''], columns)}: {text}" for text, at in groups_of(notes).items()]
    head = f"tuned: of the candidates of a row each column shows the best by {metric}, the mean over seeds:"
    return chosen, [head, *lines] if lines else []


def _figures(cell: PlannedCell, metric: str, read: Callable[[PlannedRun], Record | None]) -> dict[int, float]:
    """By seed, of finished runs."""
    found = {}
    for run in cell.runs:
        record = read(run)
        if record is not None and record["status"] == "done":
            with suppress(KdrunError):
                found[run.seed] = value_of(record, metric)
    return found


def _of(seeds: set[int], cell: PlannedCell) -> str:
    return "" if len(seeds) == len(cell.runs) else f" (by {len(seeds)} of {len(cell.runs)} seeds, others are not done)"
