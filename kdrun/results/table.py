"""A table as it is shown: texts of its cells, what stands below it, further columns, two rows compared."""

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdrun.core.errors import ConfigError, KdrunError, allowed
from kdrun.core.later import later
from kdrun.results.cell import Cell, Place, groups_of, scaled, where
from kdrun.results.claims import Verdict
from kdrun.results.intervals import paired_interval
from kdrun.results.papers import Paper, PaperCell, printed_name
from kdrun.runs.metric import Metric, is_percent
from kdrun.runs.record import Record

if TYPE_CHECKING:
    from kdrun.models.flops import flops_of_record
else:
    flops_of_record = later("kdrun.models.flops", "flops_of_record")

TEACHER_TOLERANCE = 0.7  # points of top-1 between our teacher and the paper's before a table warns
EXTRAS = ("params", "flops", "seconds", "images_per_second", "inference_per_second", "steps", "teacher")
HEADS = {"flops": "MFLOPs (1 MAC = 2)"}


@dataclass
class Table:
    """Rows by columns of cells."""

    title: str
    metric: str
    rows: list[str]
    columns: list[str]
    cells: dict[Place, Cell]
    paper: Paper | None = None
    protocol: str = "last"
    minmax: bool = False
    """Whether cells show the least and the greatest value."""
    extras: list[str] = field(default_factory=list)
    """Further columns: of `EXTRAS`, or other metrics."""
    published: dict[str, str] = field(default_factory=dict)
    """Rows that are the paper's alone -> why; "": no table beside its numbers runs them."""
    metrics: dict[Place, str] = field(default_factory=dict)
    """Cell -> what it shows in place of `metric`."""
    about: str = ""
    """What the table is, in a sentence."""
    claims: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def percent(self) -> bool:
        return is_percent(self.metric)

    @property
    def own_columns(self) -> list[str]:
        """Those that have runs: no aggregates."""
        return [column for column in self.columns if not any(self.cell(row, column).parts for row in self.rows)]

    def grid(self) -> list[list[str]]:
        """All texts, header row first."""
        own = self.own_columns
        names = [HEADS.get(name, name) for name in self.extras]
        extras = [name if len(own) == 1 else f"{column}: {name}" for column in own for name in names]
        lines = [["", *self.columns, *extras]]
        for row in self.rows:
            shown = [self._text(row, column, self.cell(row, column)) for column in self.columns]
            more = [
                extra(self.cell(row, column), name, self.metric_of(row, column))
                for column in own
                for name in self.extras
            ]
            lines.append([row, *shown, *more])
        for row in self.published:
            printed = [self.theirs(row, column) for column in self.columns]
            shown = ["" if cell is None or cell.mean is None else f"paper {cell.printed()}" for cell in printed]
            lines.append([f"{row} (published only)", *shown, *[""] * len(extras)])
        return lines

    def cell(self, row: str, column: str) -> Cell:
        return self.cells.get((row, column)) or Cell()

    def metric_of(self, row: str, column: str) -> str:
        """What a cell shows."""
        return self.metrics.get((row, column), self.metric)

    def theirs(self, row: str, column: str) -> PaperCell | None:
        """The paper's number of a cell."""
        if self.paper is None or printed_name(self.metric) is None:
            return None
        return self.paper.cell(row, column, Metric.parse(self.metric_of(row, column)).name)

    def _text(self, row: str, column: str, cell: Cell) -> str:
        text, theirs = cell.text(self.percent, self.minmax), self.theirs(row, column)
        if theirs is None or theirs.mean is None:
            return text
        against = cell.against(theirs)
        return f"{text} | paper {theirs.mean:.2f}" + (f" ({against.difference:+z.2f})" if against else "")

    @property
    def measure(self) -> str:
        """What its figures are."""
        ends = " [least, greatest]" if self.minmax else ""
        kind = "" if self.protocol == "last" else f" of protocol={self.protocol}"
        return f"{self.metric}{' in %' if self.percent else ''}{kind}, mean ± std{ends} over seeds (ddof 1)"

    def footer(self) -> list[str]:
        """Teachers behind the table, the paper's numbers, what is missing or mixed, deviations and claims."""
        lines = [self.measure]
        digits = 2 if self.percent else 4
        teachers = {name: value for cell in self.cells.values() for name, value in cell.teachers.items()}
        for name, value in sorted(teachers.items()):
            lines.append(f"teacher {name}: {scaled([value], self.percent)[0]:.{digits}f}")
        lines += self._other_teachers()
        lines += self._against()
        for (row, column), cell in self.cells.items():
            if cell.failed:
                lines.append(f"failed: {row}, {column}: {'; '.join(_failures(cell))}")
            if cell.missing and cell.values:
                seeds = [f"{seed}{_gap(cell.gaps.get(seed), cell.states.get(seed))}" for seed in cell.missing]
                lines.append(f"missing: {row}, {column}: seed {', '.join(seeds)}")
            if cell.lacking:
                lines.append(
                    f"without it: {row}, {column}: seed {', '.join(map(str, cell.lacking))}: {cell.without[0]}"
                )
            lines += [f"damaged: {row}, {column}: {problem}" for problem in cell.damaged]
        lacking = groups_of({place: [cell.lacks] for place, cell in self.cells.items() if cell.lacks})
        for why, places in lacking.items():
            lines.append(f"not planned: {where(places, self.rows, self.columns) or 'all cells'}: {why}")
        lines += self._mixed()
        if self.paper is not None:
            lines += [f"{kind}{f' ({at})' if at else ''}: {text}" for kind, text, at, _ in self.footnotes()]
            for why, rows in groups_of_rows(self.published).items():
                told = f": {why}" if why else ""
                lines.append(
                    f"published only{'' if why else ', in no table beside this paper'}: {'; '.join(rows)}{told}"
                )
        return [*lines, *self.notes, *(f"claim {verdict.text()}" for verdict in self.claims)]

    def footnotes(self) -> list[tuple[str, str, str, list[Place]]]:
        """(deviates or ours, text, its cells in words, its cells) of what differs from the paper or is no paper's."""
        cells = {place: cell for place, cell in self.cells.items() if not cell.parts}
        notes = {
            "deviates": groups_of({place: cell.deviations for place, cell in cells.items()}),
            "ours": groups_of({place: cell.ours for place, cell in cells.items()}),
        }
        return [
            (kind, text, where(places, self.rows, self.own_columns), places)
            for kind, found in notes.items()
            for text, places in found.items()
        ]

    def _other_teachers(self) -> list[str]:
        """A warning for each column whose teacher is not as good, or as bad, as the paper's."""
        if self.paper is None or self.metric != "test/top1":
            return []
        lines = []
        for column in self.columns:
            theirs = self.paper.teacher(column)
            teachers = {k: v for row in self.rows for k, v in self.cell(row, column).teachers.items()}
            for name, value in sorted(teachers.items()):
                if theirs is not None and round(abs(100 * value - theirs), 2) > TEACHER_TOLERANCE:
                    ours = f"teacher {name} has {100 * value:.2f}, the paper's {theirs:.2f}"
                    lines.append(f"warning: {column}: {ours} ({self.paper.source})")
        return lines

    def _against(self) -> list[str]:
        lines = []
        for (row, column), cell in self.cells.items():
            theirs = self.theirs(row, column)
            against = None if theirs is None else cell.against(theirs)
            if self.paper is not None and theirs is not None and against is not None:
                spread = "" if theirs.std is None else f" ± {theirs.std:.2f}"
                count = "n not stated" if theirs.n is None else f"n={theirs.n}"
                printed = f"{theirs.mean:.2f}{spread} ({count}, protocol {theirs.protocol})"
                lines.append(f"paper: {row}, {column}: {printed}; ours {against.text()}")
        if lines and self.paper is not None:
            lines.insert(0, f"paper: {self.paper.source}; ours minus theirs with Welch's 95 % interval where it can be")
        return lines

    def _mixed(self) -> list[str]:
        """Cells whose runs differ in what may move a figure."""
        notes = {
            place: [
                f"mixed {name} ({', '.join(sorted(values))})"
                for name, values in sorted(cell.origins.items())
                if len(values) > 1
            ]
            for place, cell in self.cells.items()
        }
        found = groups_of(notes).items()
        return [": ".join(filter(None, [text, where(places, self.rows, self.columns)])) for text, places in found]

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


def groups_of_rows(published: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> rows."""
    out: dict[str, list[str]] = {}
    for row, why in published.items():
        out.setdefault(why, []).append(row)
    return out


def _gap(columns: Sequence[str] | None, state: str | None) -> str:
    told = f"not in {', '.join(columns)}" if columns else state
    return f" ({told})" if told else ""


def _failures(cell: Cell) -> list[str]:
    """`seed 0, 2: why`, each reason once."""
    reasons: dict[str, list[str]] = {}
    for seed in cell.failed:
        reasons.setdefault(cell.states.get(seed, ""), []).append(str(seed))
    return [f"seed {', '.join(seeds)}{f': {why}' if why else ''}" for why, seeds in reasons.items()]


def extra(cell: Cell, name: str, metric: str) -> str:
    """The text of a further column: the mean over the cell's finished runs, nothing where records do not have it."""
    if name == "teacher":
        percent = is_percent(metric)
        shown = scaled(cell.teachers.values(), percent)
        return ", ".join(f"{value:.{2 if percent else 4}f}" for value in sorted(set(shown)))
    if "/" in name:
        other = Cell()
        for seed, record in cell.records.items():
            with suppress(KdrunError):
                other.add(seed, record, name, "last")
        return other.text(is_percent(name))
    done = [record for record in cell.records.values() if record["status"] == "done"]
    values = [value for record in done if (value := figure(record, name, Metric.parse(metric).net)) is not None]
    if not values:
        return ""
    if name == "flops":
        millions = statistics.mean(values) / 1e6
        return f"{millions:,.{max(0, 2 - math.floor(math.log10(millions)))}f}" if millions else "0"
    return f"{statistics.mean(values):,.{1 if name == 'seconds' else 0}f}"


def refuse_empty_extras(table: Table) -> None:
    """Raises ConfigError for a further column that is a metric of none of the finished runs."""
    records = [r for cell in table.cells.values() for r in cell.records.values() if r["status"] == "done"]
    for name in (name for name in table.extras if "/" in name and records):
        other = Cell()
        for seed, record in enumerate(records):
            other.add(seed, record, name, "last")
        if not other.values:
            raise ConfigError(f"columns: {name}: {other.without[0]}")


def figure(record: Record, name: str, net: str | None = None) -> float | None:
    """params, flops, steps, seconds, images_per_second (labeled images that training took) or inference_per_second
    (images that the last evaluation gave to all networks together) of a done record.

    Args:
        net: whose params and flops; None, or no network of the run: the headline's. Where that is no network alone (two
            heads, an ensemble), of all of them together, without a method's own parts.
    """
    seconds = record.get("seconds") or {}
    if name in ("params", "flops"):
        nets = record.get("nets") or {}
        headline = net if net in nets else record.get("headline")
        chosen = [nets[headline]] if headline in nets else list(nets.values())
        values = [net.get("num_params" if name == "params" else "flops") for net in chosen]
        if name == "flops" and headline in nets and "flops" not in nets[headline]:  # an older record
            return flops_of_record({**record, "headline": headline})
        return None if None in values or not values else sum(values)
    if name == "images_per_second":
        batch = ((record.get("config") or {}).get("schedule") or {}).get("batch_size")
        whole = batch and record.get("steps") and seconds.get("train")
        return batch * record["steps"] / seconds["train"] if whole else None
    if name == "inference_per_second":
        return 1 / seconds["per_image"] if seconds.get("per_image") else None
    return seconds.get("total") if name == "seconds" else record.get(name)


def comparison(table: Table, first: str, second: str) -> list[str]:
    """Row `first` minus row `second`, paired by seed: a line for each column."""
    digits, unit = (2, " points") if table.percent else (4, "")
    lines = [f"{first} minus {second}, the same seeds (paired t, 95 % interval):"]
    for column in table.columns:
        differences = scaled(table.cell(first, column).minus(table.cell(second, column)), table.percent)
        found = paired_interval(differences)
        if found is None:
            shown = f"{differences[0]:+z.{digits}f}{unit} (n=1)" if differences else "no seed in both (n=0)"
            lines.append(f"  {column}: {shown}, n/a")
        else:
            ends = f"{found.low:+z.{digits}f} to {found.high:+z.{digits}f}"
            p = "n/a" if found.p != found.p else f"{found.p:.3f}"
            lines.append(f"  {column}: {found.difference:+z.{digits}f}{unit} ({ends}), p = {p}, n={found.n}")
    return lines


def two_rows(given: str, rows: Sequence[str]) -> tuple[str, str]:
    """`rowA,rowB`; names of rows may hold commas themselves."""
    parts = given.split(",")
    for i in range(1, len(parts)):
        first, second = ",".join(parts[:i]).strip(), ",".join(parts[i:]).strip()
        if first in rows and second in rows:
            if first == second:
                raise ConfigError(f"compare: {given}: a row against itself{allowed(first, rows)}")
            return first, second
    wrong = next((part.strip() for part in parts if part.strip() not in rows), given)
    raise ConfigError(f"compare: {given}: write two rows, rowA,rowB; {wrong}: {allowed(wrong, rows).lstrip('; ')}")
