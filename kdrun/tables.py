"""Tables of mean and spread over seeds, from records: planned in conf/table, or of whatever runs there are."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdrun.config import RunConfig, TeacherConfig, effective, read_conf
from kdrun.errors import ConfigError, KdrunError, allowed
from kdrun.papers import Paper, read_paper
from kdrun.plan import Composer
from kdrun.record import MetricsLog, Record, find_records, read_record
from kdrun.schema import Schema, from_arguments

PERCENT = (
    "top1", "top5", "ece", "ece_equal_mass", "ece_classwise", "overconfidence", "confidence", "confidence_gap",
    "teacher_agreement", "precision", "coverage", "mask_rate", "pseudo_label_accuracy",
)  # fmt: skip
TEACHER_TOLERANCE = 0.7  # points of top-1 between our teacher and the paper's before a table warns


class TableConfig(Schema):
    """conf/table/<name>.yaml."""

    metric: str = "test/top1"
    """<split>/<metric> of the headline network, or <split>/<net>/<metric>."""
    protocol: Literal["last", "best_on_val"] = "last"
    seeds: list[int] = Field(min_length=1)
    rows: dict[str, list[str]] = Field(min_length=1)
    columns: dict[str, list[str]] = Field(min_length=1)
    paper: str | None = None
    """A file of conf/paper whose teachers stand behind columns of the same names."""


@dataclass
class Cell:
    """The values of one cell over its seeds."""

    values: dict[str, float] = field(default_factory=dict)
    """Run key -> value."""
    missing: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    """Why finished runs have no such figure."""
    teachers: dict[str, float] = field(default_factory=dict)
    """Directory -> the same metric of the teachers behind this cell."""

    def add(self, seed: int, record: Record | None, metric: str, protocol: str) -> None:
        """Take in one seed's record; None: there is none."""
        if record is not None and record["status"] == "failed":
            self.failed.append(seed)
        elif record is None or record["status"] != "done":
            self.missing.append(seed)
        else:
            try:
                self.values[record["key"]] = value_of(record, metric, protocol)
            except KdrunError as error:
                if metric.partition("/")[0] in ("val", "test"):
                    raise
                self.without.append(str(error))  # a figure that only some methods have

    def text(self, percent: bool) -> str:
        """`91.67 ± 1.38 (n=3/3)`, standard deviation with ddof 1; what is missing is said, not averaged away."""
        planned = len(self.values) + len(self.missing) + len(self.failed)
        if not self.values:
            return f"failed (0/{planned})" if self.failed else f"missing (0/{planned})" if planned else ""
        scale, digits = (100, 2) if percent else (1, 4)
        values = [v * scale for v in self.values.values()]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        count = f"n={len(values)}" + (f"/{planned}" if planned > len(values) else "")
        return f"{statistics.mean(values):.{digits}f}{spread} ({count})"


@dataclass
class Table:
    """Rows by columns of cells."""

    title: str
    metric: str
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    paper: Paper | None = None

    @property
    def percent(self) -> bool:
        return is_percent(self.metric)

    def grid(self) -> list[list[str]]:
        """All texts, header row first."""
        header = ["", *self.columns]
        empty = Cell()
        return [header] + [
            [row, *(self.cells.get((row, column), empty).text(self.percent) for column in self.columns)]
            for row in self.rows
        ]

    def footer(self) -> list[str]:
        """Teachers behind the table, and the seeds that failed."""
        lines = [f"{self.metric}{' in %' if self.percent else ''}, mean ± std over seeds (ddof 1)"]
        scale, digits = (100, 2) if self.percent else (1, 4)
        teachers = {name: value for cell in self.cells.values() for name, value in cell.teachers.items()}
        lines += [f"teacher {name}: {value * scale:.{digits}f}" for name, value in sorted(teachers.items())]
        lines += self._other_teachers()
        for (row, column), cell in self.cells.items():
            if cell.failed:
                lines.append(f"failed: {row}, {column}: seed {', '.join(map(str, cell.failed))}")
        return lines

    def _other_teachers(self) -> list[str]:
        """A warning for each column whose teacher is not as good, or as bad, as the paper's."""
        if self.paper is None or self.metric != "test/top1":
            return []
        lines = []
        for column in self.columns:
            theirs = self.paper.teacher(column)
            teachers = {k: v for row in self.rows for k, v in self.cells[row, column].teachers.items()}
            for name, value in sorted(teachers.items()):
                if theirs is not None and round(abs(100 * value - theirs), 2) > TEACHER_TOLERANCE:
                    ours = f"teacher {name} has {100 * value:.2f}, the paper's {theirs:.2f}"
                    lines.append(f"warning: {column}: {ours} ({self.paper.source})")
        return lines

    def to_text(self) -> str:
        grid = self.grid()
        widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in grid
        ]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:], rule, *self.footer()])

    def to_markdown(self) -> str:
        grid = [[text.replace("|", "\\|") for text in line] for line in self.grid()]
        lines = ["| " + " | ".join(line) + " |" for line in grid]
        lines.insert(1, "|" + "---|" * len(grid[0]))
        return "\n".join([f"**{self.title}**", "", *lines, "", *(f"{line}  " for line in self.footer())])


def is_percent(metric: str) -> bool:
    """Whether a metric is a fraction that is shown in percent."""
    return metric.rsplit("/", 1)[-1].removeprefix("scaled_") in PERCENT


def value_of(record: Record, metric: str, protocol: str = "last") -> float:
    """The metric of a done record, or a figure of one of its artifacts (`trusted_label/precision`).

    Raises KdrunError when the record does not have it.
    """
    split, _, name = metric.partition("/")
    artifact = record.get("artifacts", {}).get(split, {})
    if isinstance(artifact.get(name), int | float):
        return float(artifact[name])
    key = metric if "/" in name else f"{split}/{record['headline']}/{name}"
    metrics = record["metrics"] if protocol == "last" else (record["best_on_val"] or {}).get("metrics", {})
    value = metrics.get(key)
    if value is None:
        raise KdrunError(f"run {record['key']} has no {key} ({protocol}); {allowed(key, metrics)}")
    return float(value)


def planned_table(name: str, outputs: Path, metric: str | None = None, protocol: str | None = None) -> Table:
    """The table that conf/table/<name>.yaml plans, filled with the records that there are."""
    spec = _spec(name)
    paper = None if spec.paper is None else read_paper(spec.paper)
    metric, protocol = metric or spec.metric, protocol or spec.protocol
    cells: dict[tuple[str, str], Cell] = {}
    for row, column, runs in _planned(spec, outputs):
        cells[row, column] = _filled(runs, metric, protocol)
    if not any(cell.values for cell in cells.values()):  # then it is no figure of another row's method
        for cell in cells.values():
            if cell.without:
                raise KdrunError(cell.without[0])
    return Table(name, metric, list(spec.rows), list(spec.columns), cells, paper)


def curve_table(name: str, outputs: Path, metric: str, points: int) -> Table:
    """A metric over training: one row for each cell of conf/table/<name>.yaml that has it, one column for each step."""
    shown = planned_curves(name, outputs, metric)
    steps = sorted({step for seeds in shown.values() for curve in seeds for step in curve})
    every = max(len(steps) // points, 1)
    steps = steps[::-1][::every][::-1]  # the last one is always there
    cells = {
        (label, str(step)): Cell({str(k): curve[step] for k, curve in enumerate(seeds) if step in curve})
        for label, seeds in shown.items()
        for step in steps
    }
    return Table(f"{name}, by step", metric, list(shown), [str(step) for step in steps], cells)


def planned_curves(name: str, outputs: Path, metric: str) -> dict[str, list[dict[int, float]]]:
    """`<row>`, or `<row>, <column>` where there are several -> step -> value for each seed that has logged the metric.

    Raises:
        KdrunError: none has.
    """
    spec = _spec(name)
    curves = {}
    for row, column, runs in _planned(spec, outputs):
        seeds = [curve for run in runs if (curve := curve_of(run.directory, metric))]
        if seeds:
            curves[row if len(spec.columns) == 1 else f"{row}, {column}"] = seeds
    if not curves:
        raise KdrunError(f"table={name}: no run has logged {metric}")
    return curves


def curve_of(directory: Path, metric: str) -> dict[int, float]:
    """Step -> value, of what the run has logged."""
    record = read_record(directory)
    if record is None:
        return {}
    split, _, name = metric.partition("/")
    keys = (metric, f"{split}/{record.get('headline')}/{name}")
    lines = MetricsLog(directory / "metrics.jsonl").lines()
    return {line["step"]: line[key] for line in lines for key in keys if line.get(key) is not None}


def planned_records(name: str, outputs: Path) -> Iterator[tuple[str, str, list[Record | None]]]:
    """(row, column, one record for each seed) of each cell of conf/table/<name>.yaml; None: there is none."""
    for row, column, runs in _planned(_spec(name), outputs):
        yield row, column, [read_record(run.directory) for run in runs]


def _spec(name: str) -> TableConfig:
    return read_conf("table", name, TableConfig)


def _planned(spec: TableConfig, outputs: Path) -> Iterator[tuple[str, str, list[RunConfig]]]:
    """(row, column, one run for each seed) of each cell."""
    with Composer() as composer:
        for row, row_overrides in spec.rows.items():
            for column, column_overrides in spec.columns.items():
                config = composer.typed([*column_overrides, *row_overrides])
                place = config.execution.replace(outputs=str(outputs))
                yield row, column, [effective(config.replace(seed=seed, execution=place)) for seed in spec.seeds]


def _filled(runs: Sequence[RunConfig], metric: str, protocol: str) -> Cell:
    cell = Cell()
    for one in runs:
        own = read_record(one.directory)
        cell.add(one.seed, own, metric, protocol)
        if own is not None and one.teacher.source not in ("none", "train", "clip"):
            cell.teachers.update(_given_teacher(own, metric))
        for role, required in one.method_class.requires(one).items():
            record = read_record(required.directory)
            if role == "teacher" and record is not None and record["status"] == "done":
                value = _of_teacher(record, own, one.teacher, metric)
                if value is not None:
                    at = "" if one.teacher.temperature == 1 else f" at T = {one.teacher.temperature:g}"
                    cell.teachers[f"{required.students[0].name}{at} ({run_name(required.directory)})"] = value
    return cell


def _of_teacher(record: Record, student: Record | None, spec: TeacherConfig, metric: str) -> float | None:
    """The metric of a teacher, from its own run where that has it and tells the same, else from its student's."""
    if spec.source == "train" and spec.temperature == 1:  # a CLIP may have been asked with other prompts
        with suppress(KdrunError):  # what only a student has, or what was measured with it
            return value_of(record, _own(metric), "last")
    split, _, name = _own(metric).partition("/")
    return None if student is None else student["metrics"].get(f"{split}/teacher/{name}")


def _given_teacher(record: Record, metric: str) -> dict[str, float]:
    """Name -> the same metric of the teacher, as a student's record holds it."""
    split, _, name = _own(metric).partition("/")
    value = record["metrics"].get(f"{split}/teacher/{name}")
    if value is None:
        return {}
    teacher = record["config"]["teacher"]
    model = teacher["model"]["name"] if teacher["model"] else Path(teacher["path"] or "ensemble").name
    at = "" if teacher.get("temperature", 1) == 1 else f" at T = {teacher['temperature']:g}"
    return {f"{model}{at} ({record['requires'].get('teacher', teacher['source'])})": value}


def run_name(directory: Path) -> str:
    """`supervised/digits/nall/s0-...`."""
    return "/".join(directory.parts[-4:])


def _own(metric: str) -> str:
    """The metric for another run's headline network."""
    parts = metric.split("/")
    return f"{parts[0]}/{parts[-1]}"


def found_table(outputs: Path, metric: str = "test/top1", protocol: str = "last") -> Table:
    """One row for each distinct configuration among the records, one column for each dataset and number of labels."""
    groups: dict[str, tuple[dict[str, Any], dict[str, Cell]]] = {}
    columns: dict[tuple[str, int], str] = {}  # in the order of dataset and number of labels
    for _, record in find_records(outputs):
        flat = _distinguishing(record)
        count = record["num_labels"]
        column = f"{record['dataset']}, {'all' if count is None else count} labels"
        columns[record["dataset"], count or 10**9] = column
        _, cells = groups.setdefault(json.dumps(flat, sort_keys=True), (flat, {}))
        cell = cells.setdefault(column, Cell())
        cell.add(record["seed"], record, metric, protocol)
        cell.teachers.update(_given_teacher(record, metric))
    if not groups:
        raise KdrunError(f"{outputs}: no runs there; start one with python -m kdrun.train")
    labels = _labels([flat for flat, _ in groups.values()])
    rows = zip(labels, (row for _, row in groups.values()), strict=True)
    filled = {(label, column): cell for label, row in rows for column, cell in row.items()}
    return Table(f"runs in {outputs}", metric, labels, [columns[key] for key in sorted(columns)], filled)


def _distinguishing(record: Record) -> dict[str, Any]:
    """The flat config without what a cell or its seeds share."""
    config = record["config"]
    flat = _flatten(
        {k: v for k, v in config.items() if k not in ("seed", "execution", "evaluate", "tracker", "plugins")}
    )
    for key in ("dataset.num_labels", "dataset.name"):
        flat.pop(key, None)
    if flat.get("dataset.split_seed") == record["seed"]:
        flat["dataset.split_seed"] = None
    return {**flat, **{f"plugins.{name}": digest[:8] for name, digest in record["plugins"].items()}}


def _labels(flats: list[dict[str, Any]]) -> list[str]:
    """`distill kd resnet8`, and where that is not unique the keys that differ."""
    base = []
    for flat in flats:
        terms = [key.split(".")[1] for key in flat if key.startswith("loss.") and key.endswith(".name")]
        named = [t for t in terms if t != "ce"] or terms
        base.append(f"{flat['method.name']} {'+'.join(named)} {flat.get('students.0.name', '')}".strip())
    out = []
    for label, flat in zip(base, flats, strict=True):
        alike = [other for other, name in zip(flats, base, strict=True) if name == label]
        differing = sorted(
            k for k in {k for other in alike for k in other} if len({json.dumps(o.get(k)) for o in alike}) > 1
        )
        out.append(" ".join([label, *(f"{key}={flat[key]}" for key in differing if key in flat)]))
    return out


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        return {prefix: node}
    out: dict[str, Any] = {}
    for key, value in items:
        out.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return out


class TableOptions(Schema):
    """Arguments of scripts/table.py."""

    table: str | None = None
    outputs: str = "outputs"
    metric: str | None = None
    protocol: Literal["last", "best_on_val"] | None = None
    format: Literal["text", "markdown"] = "text"
    curve: int | None = Field(None, gt=0)
    """Show the metric over training, at about so many steps."""


def main(arguments: Sequence[str]) -> str:
    """The printed table for `key=value` arguments."""
    options = from_arguments(TableOptions, arguments)
    outputs = Path(options.outputs)
    if options.curve is not None:
        if options.table is None or options.metric is None:
            raise ConfigError("curve: give table=<name> and metric=<what metrics.jsonl has, e.g. train/mask_rate> too")
        table = curve_table(options.table, outputs, options.metric, options.curve)
    elif options.table is not None:
        table = planned_table(options.table, outputs, options.metric, options.protocol)
    else:
        table = found_table(outputs, options.metric or "test/top1", options.protocol or "last")
    return table.to_markdown() if options.format == "markdown" else table.to_text()
