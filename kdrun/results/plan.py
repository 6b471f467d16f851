"""The plan of a table: the runs behind each cell of conf/table/<name>.yaml.

Composing takes seconds and torch, so a plan is kept in `<outputs>/.cache/tables` for as long as conf/, the code and the
files that it names stay as they are. A kept plan that cannot be read, or is not whole, is made anew.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, Literal, Self

from omegaconf import DictConfig
from pydantic import Field, model_validator

from kdrun.config.compose import Composer, configs_of_seeds
from kdrun.config.key import run_dir
from kdrun.config.nodes import read_conf
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.files import write_text
from kdrun.core.hashing import file_hash
from kdrun.core.paths import CONF_DIR, HERE
from kdrun.core.schema import FileContent, Schema, build, marker
from kdrun.results.notes import Picked, deviations_in, ours_in
from kdrun.runs.metric import Metric

log = logging.getLogger(__name__)
Protocol = Literal["last", "best_on_val", "median20"]


class TableConfig(Schema):
    """conf/table/<name>.yaml."""

    metric: str = "test/top1"
    """<split>/<metric> of the headline network, or <split>/<net>/<metric>."""
    protocol: Protocol = "last"
    seeds: list[int] = Field(min_length=1)
    rows: dict[str, list[str]] = Field(min_length=1)
    columns: dict[str, list[str]] = Field(min_length=1)
    paper: str | None = None
    """A file of conf/paper whose numbers belong to rows and columns of the same names."""
    paper_tables: list[str] = Field(default_factory=list)
    """Only the numbers of these tables of the paper; none: of all."""
    claims: str | None = None
    """A file of conf/paper whose claims are tested though its numbers are of other columns; null: those of `paper`."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Column -> what it shows in place of `test`, such as imagenet_v2 of `evaluate.sets`; its runs may be another's."""
    aggregates: dict[str, list[str]] = Field(default_factory=dict)
    """A further column -> those whose figures it averages, seed by seed."""
    tune: dict[str, list[list[str]]] = Field(default_factory=dict)
    """Row -> candidates, further overrides of it; each column shows the one that does best on validation images."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        for name, columns in (*self.aggregates.items(), *((name, [name]) for name in self.splits)):
            for column in columns:
                if column not in self.columns:
                    raise ValueError(f"{name}: {column}: no such column; {allowed(column, self.columns)}")
        for name, columns in self.aggregates.items():
            if name in self.columns:
                raise ValueError(f"aggregates: {name}: is a column already; give it another name")
            if len(set(columns)) < 2 or len(set(columns)) < len(columns):
                raise ValueError(f"aggregates: {name}: name two columns or more, each once")
        for row, candidates in self.tune.items():
            if row not in self.rows:
                raise ValueError(f"tune: {row}: no such row; {allowed(row, self.rows)}")
            if len(set(map(tuple, candidates))) < max(2, len(candidates)):
                raise ValueError(f"tune: {row}: give two candidates or more, each once")
        return self

    def metric_of(self, column: str, metric: str) -> str:
        """What a column shows where the table shows `metric`."""
        asked = Metric.parse(metric)
        return str(replace(asked, split=self.splits.get(column, "test"))) if asked.split == "test" else metric


class PlannedRun(Schema):
    """One run of a plan."""

    seed: int
    place: str
    """Its directory below `execution.outputs`."""
    net: str
    """Its first student."""
    needs: dict[str, "PlannedRun"]
    """Role -> run that must be finished first."""


class PlannedCell(Schema):
    """A cell and its runs, one for each seed."""

    row: str
    column: str
    overrides: list[str]
    """Of `python -m kdrun.train`, without the seed."""
    candidate: list[str] | None = None
    """What tells it from the others of a place, where the row is tuned."""
    given_teacher: bool
    """Whether the teacher is there already: published weights, a file, an ensemble."""
    teacher_temperature: float
    teacher_as_trained: bool
    """Whether it tells what its own run measured: not at another temperature, and no CLIP, which prompts change."""
    deviations: list[str]
    """What `# deviates:` says in the YAML files that these overrides pick."""
    ours: list[str] = Field(default_factory=list)
    """What these files say is no paper's; of tables that stand beside a paper's numbers."""
    runs: list[PlannedRun]


class TablePlan(Schema):
    """All cells, row by row."""

    cells: list[PlannedCell]
    files: dict[str, str] = Field(default_factory=dict)
    """File or folder that a run key contains -> hash of its content."""


def table_spec(name: str) -> TableConfig:
    return read_conf("table", name, TableConfig)


def about(name: str) -> str:
    """What the first lines of conf/table/<name>.yaml say."""
    path = CONF_DIR / "table" / f"{name}.yaml"
    lines = takewhile(
        lambda line: line.startswith("# "), path.read_text("utf-8").splitlines() if path.is_file() else []
    )
    return " ".join(line.removeprefix("#").strip() for line in lines if not line.startswith("#  "))


@lru_cache(maxsize=8)
def rows_with(paper: str | None) -> frozenset[str]:
    """The rows of all tables that stand beside this paper's numbers."""
    specs = (table_spec(path.stem) for path in sorted((CONF_DIR / "table").glob("*.yaml")))
    return frozenset(row for spec in specs if paper in (spec.paper, spec.claims) for row in spec.rows)


def plan_of(name: str, spec: TableConfig, outputs: Path) -> TablePlan:
    """The plan of a table, kept or made now.

    Raises:
        ConfigError: a cell cannot be composed; names it.
    """
    if any("plugins" in word for word in chain(*spec.rows.values(), *spec.columns.values())):
        return make_plan(name, spec)  # of whose code we know nothing
    path, digest = outputs / ".cache" / "tables" / f"{name}.json", _digest(spec)
    kept = _kept(path, digest)
    if kept is not None:
        return kept
    made = make_plan(name, spec)
    if outputs.is_dir():
        content = json.dumps(made.model_dump(), ensure_ascii=False)
        try:
            write_text(path, f"{digest} {_sha(content.encode())}\n{content}\n")
        except OSError as error:
            log.info("%s: the plan is not kept (%s)", path, error.strerror)
    return made


def make_plan(name: str, spec: TableConfig) -> TablePlan:
    """As `plan_of`, composed now."""
    cells: list[PlannedCell] = []
    files: dict[str, str] = {}
    for row, column, candidate, overrides, composed, runs, picked in _composed(name, spec):
        planned = [_planned(run) for run in runs]
        first = runs[0].teacher
        given = first.kind().present and "teacher" not in planned[0].needs
        deviations = list(dict.fromkeys(line for path, _ in picked for line in deviations_in(path)))
        cells.append(
            PlannedCell(
                row=row, column=column, candidate=candidate, overrides=overrides, given_teacher=given, runs=planned,
                teacher_temperature=first.temperature, deviations=deviations,
                teacher_as_trained=first.kind().as_its_run and first.temperature == 1,
                ours=ours_in(picked, composed) if spec.paper is not None else [],
            )
        )  # fmt: skip
        files |= {path: file_hash(path, f"table={name}") for run in runs for path in _named_files(run)}
    return TablePlan(cells=cells, files=files)


def configs_of(name: str, spec: TableConfig, outputs: Path) -> Iterator[tuple[str, str, list[RunConfig]]]:
    """(row, column, typed config for each seed) of each cell, with this outputs folder; composed now."""
    for row, column, _, _, _, runs, _ in _composed(name, spec):
        yield row, column, [r.replace(execution=r.execution.replace(outputs=str(outputs))) for r in runs]


Composed = tuple[DictConfig, list[RunConfig], list[Picked]]


def _composed(
    name: str, spec: TableConfig
) -> Iterator[tuple[str, str, list[str] | None, list[str], DictConfig, list[RunConfig], list[Picked]]]:
    known: dict[tuple[str, ...], Composed] = {}  # columns that show other figures of the same runs
    places = [
        (row, column, candidate, [*words, *of_row, *(candidate or [])])
        for row, of_row in spec.rows.items()
        for column, words in spec.columns.items()
        for candidate in spec.tune.get(row, [None])
    ]
    with Composer() as composer:
        for row, column, candidate, overrides in places:
            try:
                if tuple(overrides) not in known:
                    composed = composer.compose(overrides)
                    known[tuple(overrides)] = (
                        composed,
                        configs_of_seeds(composed, spec.seeds),
                        composer.picked(overrides),
                    )
            except ConfigError as error:
                raise ConfigError(*(f"table={name}: {row}, {column}: {line}" for line in error.lines)) from None
            yield row, column, candidate, overrides, *known[tuple(overrides)]


def _planned(run: RunConfig) -> PlannedRun:
    needs = {role: _planned(other) for role, other in run.method_class.requires(run).items()}
    net = run.students[0].name if run.students else run.method.name
    return PlannedRun(seed=run.seed, place=run_dir(run), net=net, needs=needs)


def _kept(path: Path, digest: str) -> TablePlan | None:
    try:
        head, _, content = path.read_text("utf-8").rstrip("\n").partition("\n")
        if head != f"{digest} {_sha(content.encode())}":
            return None
        plan = build(TablePlan, json.loads(content), str(path))
        return plan if all(file_hash(name, "") == known for name, known in plan.files.items()) else None
    except (OSError, ValueError, ConfigError) as error:
        log.debug("%s: %s", path, error)
        return None


def _digest(spec: TableConfig) -> str:
    """Of everything that a plan follows from, but the files that it names itself."""
    whole = hashlib.sha256(spec.model_dump_json().encode())
    for folder, pattern in ((CONF_DIR, "*.yaml"), (HERE, "*.py")):
        for path in sorted(folder.rglob(pattern)):
            content = path.read_bytes()
            whole.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    for package in ("hydra-core", "omegaconf", "pydantic", "timm"):
        whole.update(metadata.version(package).encode() + b"\0")
    return whole.hexdigest()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _named_files(value: Any) -> Iterator[str]:
    """The files and folders whose content a run key contains."""
    if isinstance(value, Schema):
        for name, field in type(value).model_fields.items():
            item = getattr(value, name)
            if not marker(field, FileContent):
                yield from _named_files(item)
            elif isinstance(item, str):
                yield item
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _named_files(item)
