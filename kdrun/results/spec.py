"""What conf/table/<name>.yaml says: rows, columns, seeds, candidates, the paper whose numbers stand beside."""

from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from kdrun.config.nodes import read_conf
from kdrun.config.space import Dimension, parsed, spread
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.paths import CONF_DIR, conf_file
from kdrun.core.schema import Schema
from kdrun.results.grid import spread_out
from kdrun.runs.metric import Metric, is_percent

Protocol = Literal["last", "best_on_val", "median20"]


class Tuning(Schema):
    """Candidates that are spread over a space; as a plan is known beforehand, none follows from what others did."""

    over: list[str] = Field(min_length=1)
    """`schedule.lr=tag(log,interval(0.01,1))`, `loss.kd.temperature=choice(1,2,4)`, `...=range(1,8)`."""
    trials: int = Field(ge=2, le=1000)


Candidates = Annotated[
    Annotated[list[list[str]], Tag("list")] | Annotated[Tuning, Tag("space")],
    Discriminator(lambda given: "list" if isinstance(given, list) else "space"),
]


class TableConfig(Schema):
    """conf/table/<name>.yaml."""

    metric: str = "test/top1"
    """<split>/<metric> of the headline network, or <split>/<net>/<metric>."""
    protocol: Protocol = "last"
    seeds: list[int] = Field(min_length=1)
    rows: dict[str, list[str]] = Field(min_length=1)
    columns: dict[str, list[str]] = Field(min_length=1)
    """Overrides of each. With names of the grid, such as `<k>`, it stands for a column of each of their values."""
    grid: dict[str, list[str | int]] = Field(default_factory=dict)
    """`dataset: [dtd, eurosat]` and `k: [1, 2]`, for a column `<dataset> <k>-shot`; none once it is spread out."""
    paper: str | None = None
    """A file of conf/paper whose numbers belong to rows and columns of the same names."""
    paper_tables: list[str] = Field(default_factory=list)
    """Only the numbers of these tables of the paper; none: of all."""
    claims: str | None = None
    """A file of conf/paper whose claims are tested though its numbers are of other columns; null: those of `paper`."""
    shows: dict[str, str] = Field(default_factory=dict)
    """Row or column -> the metric that it shows in place of `metric`, such as imagenet_v2/top1 of `evaluate.sets` or
    test/student_2/top1; its runs may be another's. Of another metric that is asked for, the part that is its own."""
    aggregates: dict[str, list[str]] = Field(default_factory=dict)
    """A further column -> those whose figures it averages, seed by seed."""
    tune: dict[str, Candidates] = Field(default_factory=dict)
    """Row -> candidates, further overrides of it; each column shows the one that does best on validation images."""

    @model_validator(mode="before")
    @classmethod
    def spread(cls, node: Any) -> Any:
        return spread_out(node) if isinstance(node, dict) else node

    @model_validator(mode="after")
    def consistent(self) -> Self:
        for name, columns in self.aggregates.items():
            for column in columns:
                if column not in self.columns:
                    raise ValueError(f"{name}: {column}: no such column{allowed(column, self.columns)}")
        for name, metric in self.shows.items():
            if name not in self.columns and name not in self.rows:
                raise ValueError(f"shows: {name}: no such row or column{allowed(name, [*self.rows, *self.columns])}")
            if "/" not in metric or is_percent(metric) != is_percent(self.metric):
                raise ValueError(f"shows: {name}: {metric}: write <images>/<figure> in the unit of {self.metric}")
        for name, columns in self.aggregates.items():
            if name in self.columns:
                raise ValueError(f"aggregates: {name}: is a column already; give it another name")
            if len(set(columns)) < 2 or len(set(columns)) < len(columns):
                raise ValueError(f"aggregates: {name}: name two columns or more, each once")
        for row in self.tune:
            if row not in self.rows:
                raise ValueError(f"tune: {row}: no such row{allowed(row, self.rows)}")
            candidates = self.candidates(row)
            if len(set(map(tuple, candidates))) < max(2, len(candidates)):
                raise ValueError(f"tune: {row}: give two candidates or more, each once")
        counts = {row: len(self.candidates(row)) for row in self.tune}
        if any(isinstance(tuning, Tuning) for tuning in self.tune.values()) and len(set(counts.values())) > 1:
            told = ", ".join(f"{row} {count}" for row, count in counts.items())
            raise ValueError(f"tune: as many trials for each row, or some are tuned better than others ({told})")
        return self

    def candidates(self, row: str) -> list[list[str]]:
        """Of a row that is tuned.

        Raises:
            ValueError: its space cannot be searched; names the row.
        """
        tuning = self.tune[row]
        if not isinstance(tuning, Tuning):
            return tuning
        try:
            return spread([Dimension.of(override) for override in parsed(tuning.over)], tuning.trials)
        except ConfigError as error:
            raise ValueError(f"tune: {row}: {error}") from None

    def metric_of(self, row: str, column: str, metric: str) -> str:
        """What a cell shows where the table shows `metric`."""
        asked, usual = Metric.parse(metric), Metric.parse(self.metric)
        for name in (column, row):
            own = Metric.parse(self.shows.get(name, self.metric))
            parts = [part for part in ("split", "net", "name") if getattr(asked, part) == getattr(usual, part)]
            asked = replace(asked, **{part: getattr(own, part) for part in parts})
        return str(asked)


def table_spec(name: str) -> TableConfig:
    return read_conf("table", name, TableConfig)


def about(name: str) -> str:
    """What the first lines of conf/table/<name>.yaml say."""
    path = conf_file(f"table/{name}.yaml")
    lines = takewhile(
        lambda line: line.startswith("# "), path.read_text("utf-8").splitlines() if path.is_file() else []
    )
    return " ".join(line.removeprefix("#").strip() for line in lines if not line.startswith("#  "))


@lru_cache(maxsize=8)
def rows_with(paper: str | None) -> frozenset[str]:
    """The rows of all tables that stand beside this paper's numbers."""
    specs = (table_spec(path.stem) for path in sorted((CONF_DIR / "table").glob("*.yaml")))
    return frozenset(row for spec in specs if paper in (spec.paper, spec.claims) for row in spec.rows)
