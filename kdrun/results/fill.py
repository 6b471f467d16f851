"""Tables of mean and spread over seeds, from records: planned in conf/table, or of whatever runs there are."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean

from kdrun.core.errors import KdrunError
from kdrun.results.cell import Cell, Place, curve_of, given_teacher, run_name, scaled, teacher_value, value_of
from kdrun.results.claims import Verdict, verdict_on
from kdrun.results.edited import edited_plugins
from kdrun.results.papers import TEACHER, Paper, printed_name, read_paper
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan, plan_of
from kdrun.results.spec import TableConfig, rows_with, table_spec
from kdrun.results.table import Table
from kdrun.results.tuned import best_candidates
from kdrun.runs.metric import Metric, is_percent
from kdrun.runs.record import Record, read_record

log = logging.getLogger(__name__)
Reader = Callable[[str], Record | None]
"""Directory below the outputs folder -> record; None: there is none. Raises KdrunError for a damaged one."""


def reader(outputs: Path) -> Reader:
    """Records below an outputs folder, each read once."""
    kept: dict[str, Record | None] = {}

    def read(place: str) -> Record | None:
        if place not in kept:
            kept[place] = read_record(outputs / place)
        return kept[place]

    return read


def planned_table(
    name: str, outputs: Path, metric: str | None = None, protocol: str | None = None, read: Reader | None = None
) -> Table:
    """The table that conf/table/<name>.yaml plans, filled with the records that there are.

    Args:
        read: where records come from; None: from below `outputs`.
    """
    spec = table_spec(name)
    read = read or reader(outputs)
    plan = plan_of(name, spec, outputs, lenient=True)
    table = table_of(name, spec, plan, outputs, read, metric, protocol)
    missing = [cell.runs[seed] for cell in table.cells.values() for seed in cell.missing if seed in cell.runs]
    table.notes += edited_plugins(plan, missing, outputs)
    return table


def table_of(
    name: str, spec: TableConfig, plan: TablePlan, outputs: Path, read: Reader, metric: str | None = None,
    protocol: str | None = None,
) -> Table:  # fmt: skip
    """The table of a plan, filled with the records that `read` gives."""
    metric, protocol = metric or spec.metric, protocol or spec.protocol
    cells: dict[Place, Cell] = {}
    candidates, tuned = _best_candidates(spec, plan, read)
    for planned in candidates:
        own = spec.metric_of(planned.row, planned.column, metric)
        cells[planned.row, planned.column] = _cell(planned, own, protocol, read, outputs)
    if not any(cell.values for cell in cells.values()):  # then it is no figure of another row's method
        for cell in cells.values():
            if cell.without:
                raise KdrunError(cell.without[0])
    unsure = metric != spec.metric and not any(cell.values for cell in cells.values())
    for column, parts in spec.aggregates.items():
        for row in spec.rows:
            cells[row, column] = Cell.mean_of({part: cells[row, part] for part in parts})
    table = empty_table(name, spec, metric, protocol)
    table.cells = cells
    table.notes[:0] = [f"no run is done yet: whether they will have {metric} is not known"] if unsure else []
    table.notes += tuned
    claimed = read_paper(spec.claims) if spec.claims else table.paper
    table.claims = _verdicts(claimed, spec, table, read)
    return table


def empty_table(name: str, spec: TableConfig, metric: str, protocol: str) -> Table:
    """Rows, columns and the paper's numbers of conf/table/<name>.yaml, no run."""
    paper = None if spec.paper is None else read_paper(spec.paper).only(spec.paper_tables)
    table = Table(name, metric, list(spec.rows), [*spec.columns, *spec.aggregates], {}, paper, protocol)
    if paper is not None and printed_name(metric) is not None:
        shown = {column: Metric.parse(spec.metric_of("", column, metric)).name for column in spec.columns}
        shown |= {column: Metric.parse(metric).name for column in spec.aggregates}
        others = {row: why for row, why in paper.rows_of(shown).items() if row not in table.rows}
        table.published = {row: why for row, why in others.items() if why or row not in rows_with(spec.paper)}
    for row in (*table.rows, *table.published):
        for column in spec.columns:
            if (own := spec.metric_of(row, column, metric)) != metric:
                table.metrics[row, column] = own
    table.notes += [f"{name}: {_in_place(shown, spec.metric)}" for name, shown in spec.shows.items()]
    table.notes += [f"{name}: the mean of {', '.join(parts)}, seed by seed" for name, parts in spec.aggregates.items()]
    return table


def _in_place(shown: str, usual: str) -> str:
    """`imagenet_v2 in place of test`."""
    own, other = Metric.parse(shown), Metric.parse(usual)
    pairs = ((own.split, other.split), (own.net, other.net), (own.name, other.name))
    told = [f"{new or 'the headline'} in place of {old or 'the headline'}" for new, old in pairs if new != old]
    return ", ".join(told) or shown


def _best_candidates(spec: TableConfig, plan: TablePlan, read: Reader) -> tuple[list[PlannedCell], list[str]]:
    def record(run: PlannedRun) -> Record | None:
        with suppress(KdrunError):  # the cell says which cannot be read
            return read(run.place)
        return None

    return best_candidates(spec, plan, record)


def _verdicts(paper: Paper | None, spec: TableConfig, table: Table, read: Reader) -> list[Verdict]:
    """Of the claims about rows that the table has, once a run is done. Aggregates count where a claim names them."""
    if paper is None or not any(cell.values for cell in table.cells.values()):
        return []
    protocol = table.protocol if table.protocol == "best_on_val" else "last"

    def figures(row: str, column: str, metric: str) -> dict[int, float]:
        """By seed."""
        if column in spec.aggregates:
            parts = [figures(row, part, metric) for part in spec.aggregates[column]]
            return {seed: mean(part[seed] for part in parts) for seed in sorted(set.intersection(*map(set, parts)))}
        cell = table.cells.get((row.removeprefix(f"{TEACHER} of "), column), Cell())
        if metric == "cost":
            costs = {seed: _cost(run, read) for seed, run in cell.runs.items() if seed in cell.records}
            return {} if len(cell.origins.get("device", ())) > 1 else {k: v for k, v in costs.items() if v is not None}
        key = spec.metric_of(row.removeprefix(f"{TEACHER} of "), column, metric)
        if row.startswith(f"{TEACHER} of "):
            key = str(Metric.parse(key).of("teacher"))
        found: dict[int, float] = {}
        for seed, record in cell.records.items():
            with suppress(KdrunError):
                if record["status"] == "done":
                    found[seed] = value_of(record, key, protocol)
        return found

    def values(row: str, column: str, metric: str) -> list[float]:
        return scaled(figures(row, column, metric).values(), is_percent(metric))

    named = [column for column in table.columns if column in spec.columns]
    return [
        verdict_on(claim, table.columns if claim.columns else named, values)
        for claim in paper.claims
        if set(claim.rows) <= set(table.rows)
    ]


def _cost(run: PlannedRun, read: Reader) -> float | None:
    """Seconds of a run and of the runs that it needs, teachers aside; None: one of them is not there."""
    record: Record | None = None
    with suppress(KdrunError):  # the cell says which cannot be read
        record = read(run.place)
    parts: list[float | None] = [((record or {}).get("seconds") or {}).get("total")]
    parts += [_cost(other, read) for role, other in run.needs.items() if not role.startswith("teacher")]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


CurveReader = Callable[[str, str], dict[int, float]]
"""(directory below the outputs folder, metric) -> step -> value, of what a run has logged."""


Curves = dict[str, list[dict[int, float]]]
"""Row -> step -> value for each seed."""


def curve_table(name: str, shown: Curves, metric: str, points: int) -> Table:
    """A metric over training, at about so many steps: one row for each of the curves, one column for each step."""
    steps = sorted({step for seeds in shown.values() for curve in seeds for step in curve})
    every = max(len(steps) // points, 1)
    steps = steps[::-1][::every][::-1]  # the last one is always there
    cells = {
        (label, str(step)): Cell({str(k): curve[step] for k, curve in enumerate(seeds) if step in curve})
        for label, seeds in shown.items()
        for step in steps
    }
    return Table(f"{name}, by step", metric, list(shown), [str(step) for step in steps], cells)


def planned_curves(name: str, outputs: Path, metric: str) -> Curves:
    """`<row>`, or `<row>, <column>` where there are several -> step -> value for each seed that has logged the metric.

    Raises:
        KdrunError: none has.
    """
    spec = table_spec(name)
    return curves_of(name, spec, plan_of(name, spec, outputs), curve_reader(outputs), metric)


def curve_reader(outputs: Path) -> CurveReader:
    """From metrics.jsonl below an outputs folder."""
    return lambda place, metric: curve_of(outputs / place, metric)


def curves_of(name: str, spec: TableConfig, plan: TablePlan, read: CurveReader, metric: str) -> Curves:
    """As `planned_curves`, of a plan."""
    curves = {}
    for cell in plan.cells:
        if seeds := logged_curves(cell.runs, read, metric):
            words = [cell.row, *([] if len(spec.columns) == 1 else [cell.column]), *(cell.candidate or [])]
            curves[", ".join(words)] = seeds
    if not curves:
        raise KdrunError(f"table={name}: no run has logged {metric}")
    return curves


def logged_curves(runs: Iterable[PlannedRun], read: CurveReader, metric: str) -> list[dict[int, float]]:
    """Of those that have logged the metric; one whose metrics.jsonl is damaged is left out, which is said."""
    curves = []
    for run in runs:
        try:
            curves.append(read(run.place, metric))
        except KdrunError as error:
            log.warning("left out: %s", error)
    return [curve for curve in curves if curve]


def planned_records(name: str, outputs: Path) -> Iterator[tuple[str, str, list[Record | None]]]:
    """(row, column, one record for each seed) of each cell of conf/table/<name>.yaml.

    None where there is none; what is not whole is named in the log and counts as none.
    """
    read, spec = reader(outputs), table_spec(name)
    for cell in _best_candidates(spec, plan_of(name, spec, outputs), read)[0]:
        known = Cell()
        yield cell.row, cell.column, [_record(run.place, read, known) for run in cell.runs]
        for problem in known.damaged:
            log.warning("left out: %s", problem)


def _cell(planned: PlannedCell, metric: str, protocol: str, read: Reader, outputs: Path) -> Cell:
    cell = Cell(deviations=planned.deviations, ours=planned.ours, lacks=planned.lacks)
    for run in planned.runs:
        cell.runs[run.seed] = run
        own = _record(run.place, read, cell)
        if own is not None:
            cell.records[run.seed] = own
        cell.add(run.seed, own, metric, protocol, outputs / run.place)
        if own is not None and planned.given_teacher:
            cell.teachers.update(given_teacher(own, metric))
        for role, required in run.needs.items():
            record = _record(required.place, read, cell) if role == "teacher" else None
            if record is not None and record["status"] == "done":
                value = _of_teacher(record, own, planned.teacher_as_trained, metric)
                if value is not None:
                    at = "" if planned.teacher_temperature == 1 else f" at T = {planned.teacher_temperature:g}"
                    cell.teachers[f"{required.net}{at} ({run_name(Path(required.place))})"] = value
    return cell


def _record(place: str, read: Reader, cell: Cell) -> Record | None:
    """The record; None where there is none, or none that can be read, which the cell then tells."""
    try:
        return read(place)
    except KdrunError as error:
        if str(error) not in cell.damaged:
            cell.damaged.append(str(error))
        return None


def _of_teacher(record: Record, student: Record | None, as_trained: bool, metric: str) -> float | None:
    """The metric of a teacher, from its own run where that has it and tells the same, else from its student's."""
    if as_trained:
        with suppress(KdrunError):  # what only a student has, or what was measured with it
            return value_of(record, str(Metric.parse(metric).of(None)), "last")
    return None if student is None else teacher_value(student, metric)
