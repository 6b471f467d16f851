"""Published numbers and claims, as conf/paper/<name>.yaml holds them, printed beside ours, never mixed with them."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from kdrun.config.nodes import read_conf
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.schema import Schema
from kdrun.runs.metric import Metric

TEACHER = "Teacher"
"""The row of the teachers' own accuracy."""


class PaperCell(Schema):
    """One printed number."""

    table: str
    row: str
    column: str
    metric: Literal["top1", "top5", "ece", "confidence", "confidence_gap"] = "top1"
    """By our name for it."""
    mean: float | None
    """null: the paper prints n/a."""
    std: float | None = Field(None, ge=0)
    n: int | None = Field(None, gt=0)
    """Runs behind the mean; null: not stated."""
    protocol: Literal["last", "best", "median of the last 20 checkpoints", "unknown"]
    """Which evaluation counts; best: the best epoch on the test images."""
    tag: Literal["paper", "digest", "code"]
    """digest: known second hand; code: from files beside the authors' code."""

    def printed(self) -> str:
        """`71.92 ± 0.40`."""
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


class PublishedOnly(Schema):
    """Numbers beside which no run of ours can stand, and why."""

    table: str | None = None
    """null: of any table."""
    rows: list[str] = Field(default_factory=list)
    """None: all rows."""
    columns: list[str] = Field(default_factory=list)
    """None: all columns."""
    why: str = Field(min_length=10)

    def covers(self, cell: PaperCell) -> bool:
        named = (self.table is None or cell.table == self.table) and (not self.rows or cell.row in self.rows)
        return named and (not self.columns or cell.column in self.columns)


class Claim(Schema):
    """What a paper says of its table, to be held against ours. Figures are in percent where tables show percent."""

    name: str
    kind: Literal["greater", "shrinking", "ratio", "above_teacher", "follows_teacher"]
    """Of `rows` [a, b] in each column. greater: a - b > margin, and < most where that is given. shrinking: a - b falls
    from column to column. ratio: |a| > margin x |b|. Of one row: above_teacher: a - its teacher > margin;
    follows_teacher: a has the order of the teachers over the columns."""
    rows: list[str] = Field(min_length=1, max_length=2)
    columns: list[str] | None = None
    """null: all columns of a table."""
    metric: str = "test/top1"
    """As in tables; cost: seconds of a run and of what it needs, teachers aside."""
    margin: float = 0.0
    most: float | None = None
    tag: Literal["paper", "digest", "code"]

    @model_validator(mode="after")
    def consistent(self) -> Self:
        wanted = 1 if self.kind.endswith("_teacher") else 2
        if len(self.rows) != wanted:
            raise ValueError(f"claim {self.name!r}: kind={self.kind} is about {wanted} rows, got {len(self.rows)}")
        if self.kind == "shrinking" and len(self.columns or []) == 1:
            raise ValueError(f"claim {self.name!r}: kind=shrinking needs two columns or more")
        return self


class Paper(Schema):
    """conf/paper/<name>.yaml."""

    source: str
    unit: Literal["percent"]
    cells: list[PaperCell] = Field(min_length=1)
    published_only: list[PublishedOnly] = Field(default_factory=list)
    """Of what no table of conf/table runs."""
    claims: list[Claim] = Field(default_factory=list)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        seen = set()
        for cell in self.cells:
            place = (cell.table, cell.row, cell.column, *([cell.metric] if cell.metric != "top1" else []))
            if place in seen:
                raise ValueError(f"cells: {', '.join(place)} is there twice")
            seen.add(place)
            if cell.mean is None and (cell.std, cell.n) != (None, None):
                raise ValueError(f"cells: {', '.join(place)} has no mean, but std or n")
        for entry in self.published_only:
            rows = {cell.row for cell in self.cells if entry.table in (None, cell.table)}
            columns = {cell.column for cell in self.cells if entry.table in (None, cell.table)}
            named = [*((row, rows) for row in entry.rows), *((column, columns) for column in entry.columns)]
            for name, known in named:
                if name not in known:
                    raise ValueError(f"published_only: {name}: no such number{allowed(name, known)}")
            if not any(entry.covers(cell) for cell in self.cells):
                raise ValueError(f"published_only: {entry.why[:60]}: names no number")
        names = [claim.name for claim in self.claims]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"claims: {twice[0]} is there twice")
        return self

    def only(self, tables: Sequence[str]) -> "Paper":
        """With the numbers of these tables alone; none are named: of all."""
        known = {cell.table for cell in self.cells}
        for name in tables:
            if name not in known:
                raise ConfigError(f"paper_tables: {name}: no table of {self.source}{allowed(name, known)}")
        if not tables:
            return self
        cells = [cell for cell in self.cells if cell.table in tables]
        rows = {cell.row for cell in cells}
        kept = [
            entry.replace(rows=[row for row in entry.rows if row in rows])
            for entry in self.published_only
            if any(entry.covers(cell) for cell in cells)
        ]
        return self.replace(cells=cells, published_only=kept)

    def cell(self, row: str, column: str, metric: str) -> PaperCell | None:
        """The number of a place in our tables; None where the paper has none, or several tables with different ones."""
        found = [c for c in self.cells if (c.row, c.column, c.metric) == (row, column, metric)]
        return found[0] if len({(c.mean, c.std, c.n) for c in found}) == 1 else None

    def rows_of(self, columns: Mapping[str, str]) -> dict[str, str]:
        """The rows that have a number in one of these columns, by column -> metric, teachers aside; and why they have
        that alone, "" where nothing says so."""
        found: dict[str, str] = {}
        for cell in self.cells:
            if columns.get(cell.column) == cell.metric and cell.mean is not None and not cell.row.startswith(TEACHER):
                found[cell.row] = found.get(cell.row) or self.why(cell)
        return found

    def why(self, cell: PaperCell) -> str:
        """Why no run of ours stands beside a number; "": nothing says so."""
        return next((entry.why for entry in self.published_only if entry.covers(cell)), "")

    def teacher(self, column: str) -> float | None:
        """The accuracy of the teacher behind a column, in percent."""
        cells = (cell for cell in self.cells if cell.metric == "top1")
        return next((cell.mean for cell in cells if (cell.row, cell.column) == (TEACHER, column)), None)


def printed_name(metric: str) -> str | None:
    """What papers may print of a metric: its name, of the headline on test images; None: they print no such number."""
    asked = Metric.parse(metric)
    return asked.name if (asked.split, asked.net) == ("test", None) else None


def read_paper(name: str) -> Paper:
    """The numbers of one paper. Raises ConfigError when there is no such file, or one line for each mistake in it."""
    return read_conf("paper", name, Paper)
