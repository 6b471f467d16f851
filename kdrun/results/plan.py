"""The plan of a table: the runs behind each cell of conf/table/<name>.yaml.

Composing takes seconds and torch, so a plan is kept in `<outputs>/.cache/tables` for as long as conf/, the code and the
files that it names stay as they are. A kept plan that cannot be read, or is not whole, is made anew.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Self, TypeVar

from omegaconf import DictConfig
from pydantic import Field

from kdrun.config.compose import Composer, configs_of_seeds
from kdrun.config.dataset import DatasetConfig
from kdrun.config.job import key_on
from kdrun.config.key import data_identity, named_files, run_dir
from kdrun.config.run import RunConfig
from kdrun.core.counting import counted
from kdrun.core.errors import ConfigError, MissingFile
from kdrun.core.hashing import content_hash, json_hash
from kdrun.core.paths import given_conf, in_conf
from kdrun.core.registry import lookup
from kdrun.core.schema import FileContent, Schema, build
from kdrun.data.found import found, unsplit
from kdrun.results.kept import digest_of, keep, kept
from kdrun.results.notes import Picked, deviations_in, ours_in
from kdrun.results.spec import TableConfig
from kdrun.runs.place import trained_on

log = logging.getLogger(__name__)


class PlannedRun(Schema):
    """One run of a plan."""

    seed: int
    place: str
    """Its directory below `execution.outputs`."""
    net: str
    """Its first student."""
    needs: dict[str, "PlannedRun"]
    """Role -> run that must be finished first."""
    data: str = ""
    """The name of its data in `TablePlan.data`; none: not known."""


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
    lacks: str = ""
    """Why it has none: a file that its run keys have the content of is not there. Never in a plan that is kept."""


class PlannedFile(Schema):
    """A file or folder that a run key has the content of."""

    hash: str
    whole: bool
    or_name: bool
    suffixes: list[str] | None

    @classmethod
    def of(cls, path: str, key: str, file: FileContent) -> Self:
        suffixes = None if file.suffixes is None else sorted(file.suffixes)
        return cls(hash=content_hash(path, key, file), whole=file.whole, or_name=file.or_name, suffixes=suffixes)

    def stays(self, path: str) -> bool:
        """Whether it is as it was."""
        suffixes = None if self.suffixes is None else frozenset(self.suffixes)
        return content_hash(path, "", FileContent(self.whole, self.or_name, suffixes)) == self.hash


class PlannedData(Schema):
    """What runs are trained on."""

    dataset: str
    config: str
    """JSON, without what says how the images are split."""
    identity: str | None
    """What the run key has beside it."""

    @classmethod
    def of(cls, run: RunConfig) -> Self:
        text = unsplit(run.dataset).model_dump_json()
        return cls(dataset=run.dataset.name, config=text, identity=data_identity(run.dataset))

    @property
    def typed(self) -> DatasetConfig:
        config: DatasetConfig = lookup("dataset", self.dataset, "dataset.name").Config.model_validate_json(self.config)
        return config

    def stays(self) -> bool:
        """Whether what lies there has the identity that it had."""
        return data_identity(self.typed) == self.identity


class TablePlan(Schema):
    """All cells, row by row."""

    cells: list[PlannedCell]
    files: dict[str, PlannedFile | str] = Field(default_factory=dict)
    """By path; a hash alone, in what older versions published."""
    data: dict[str, PlannedData] = Field(default_factory=dict)
    """By the hash of its configuration."""

    def published(self) -> Self:
        """Without what only matters where the data are."""

        def bare(run: PlannedRun) -> PlannedRun:
            return run.replace(data="", needs={role: bare(other) for role, other in run.needs.items()})

        files = {path: file if isinstance(file, str) else file.hash for path, file in self.files.items()}
        cells = [cell.replace(runs=[bare(run) for run in cell.runs]) for cell in self.cells]
        return self.replace(cells=cells, files=files, data={})


P = TypeVar("P", bound=TablePlan)
QUICK = 2**28  # bytes of a dataset that are read to show a table; what is more must be remembered


def plan_of(
    name: str, spec: TableConfig, outputs: Path, most: float = QUICK, lenient: bool = False
) -> TablePlan:  # fmt: skip
    """The plan of a table, kept or made now: each run where it lies, given the data that are there.

    Args:
        most: bytes of a dataset that are read for that.
        lenient: a cell whose runs have no key, since a file is not there, has none; else that is an error.

    Raises:
        ConfigError: a cell cannot be composed; names it.
    """
    return on_present_data(_plan_of(name, spec, outputs, lenient), outputs, most)


def _plan_of(name: str, spec: TableConfig, outputs: Path, lenient: bool) -> TablePlan:
    plan = kept_plan(name, spec, outputs)
    if plan is None:
        plan = make_plan(name, spec, lenient=lenient)
        if not any(cell.lacks for cell in plan.cells):
            keep_plan(name, spec, outputs, plan)
    return plan


def kept_plan(name: str, spec: TableConfig, outputs: Path) -> TablePlan | None:
    """None: there is none, or what it follows from is not what it was."""
    if composed_anew(spec):
        return None
    return plan_in(cache_of(name, outputs), digest_of(spec.model_dump_json()), TablePlan)


def keep_plan(name: str, spec: TableConfig, outputs: Path, plan: TablePlan) -> None:
    if not composed_anew(spec):
        keep(cache_of(name, outputs), digest_of(spec.model_dump_json()), plan.model_dump())


def cache_of(name: str, outputs: Path) -> Path:
    return outputs / ".cache" / "tables" / f"{name}.json"


def composed_anew(spec: TableConfig) -> bool:
    """Whether it has plug-ins, of whose code we know nothing; any config of a user's own may name them."""
    own = given_conf()
    unknown = own is not None and any("plugins" in path.read_text("utf-8", "replace") for path in own.rglob("*.yaml"))
    return unknown or any("plugins" in word for word in chain(*spec.rows.values(), *spec.columns.values()))


def make_plan(
    name: str, spec: TableConfig, cells: Iterable["ComposedCell"] | None = None, lenient: bool = False
) -> TablePlan:  # fmt: skip
    """As `plan_of`, composed now.

    Args:
        cells: of `composed_cells`, where they are there already, maybe with more overrides that move no run key.
    """
    made: list[PlannedCell] = []
    files: dict[str, PlannedFile | str] = {}
    data: dict[str, PlannedData] = {}
    absent = made if lenient else None
    for row, column, candidate, overrides, composed, runs, picked in cells or composed_cells(name, spec, absent=absent):
        try:
            planned = [_planned(run, files, data) for run in runs]
        except MissingFile as error:
            if not lenient:
                raise
            made.append(_without_file(row, column, candidate, overrides, picked, error))
            continue
        first = runs[0].teacher
        given = first.kind().present and "teacher" not in planned[0].needs
        deviations = list(dict.fromkeys(line for path, _ in picked for line in deviations_in(path)))
        made.append(
            PlannedCell(
                row=row, column=column, candidate=candidate, overrides=overrides, given_teacher=given, runs=planned,
                teacher_temperature=first.temperature, deviations=deviations,
                teacher_as_trained=first.kind().as_its_run and first.temperature == 1,
                ours=ours_in(picked, composed) if spec.paper is not None else [],
            )
        )  # fmt: skip
    return TablePlan(cells=made, files=files, data=data)


def _without_file(
    row: str, column: str, candidate: list[str] | None, overrides: list[str], picked: list[Picked], error: MissingFile
) -> PlannedCell:  # fmt: skip
    """A cell without runs, with what is missing and the YAML file that names it."""
    naming = [path for path, _ in picked if path.is_file() and error.file in path.read_text("utf-8")]
    told = f"; see {in_conf(naming[-1])}" if naming else ""
    return PlannedCell(
        row=row, column=column, candidate=candidate, overrides=overrides, given_teacher=False, runs=[],
        teacher_temperature=1.0, teacher_as_trained=True, deviations=[], lacks=f"{error}{told}",
    )  # fmt: skip


def configs_of(name: str, spec: TableConfig, outputs: Path) -> Iterator[tuple[str, str, list[RunConfig]]]:
    """(row, column, typed config for each seed) of each cell, with this outputs folder; composed now."""
    for row, column, _, _, _, runs, _ in composed_cells(name, spec):
        yield row, column, [r.replace(execution=r.execution.replace(outputs=str(outputs))) for r in runs]


Composed = tuple[DictConfig, list[RunConfig], list[Picked]]
ComposedCell = tuple[str, str, list[str] | None, list[str], DictConfig, list[RunConfig], list[Picked]]
"""Row, column, candidate, overrides, what they compose to, a typed config for each seed, YAML files."""


def composed_cells(
    name: str, spec: TableConfig, more: Sequence[str] = (), absent: list[PlannedCell] | None = None
) -> Iterator[ComposedCell]:
    """Each cell, what its row and column share once.

    Args:
        more: further overrides of every cell, not in those that are given back.
        absent: takes the cells that lack a file, which are then no error.

    Raises:
        ConfigError: a cell cannot be composed; names it.
    """
    known: dict[tuple[str, ...], Composed] = {}  # columns that show other figures of the same runs
    places = [
        (row, column, candidate, [*words, *of_row, *(candidate or [])])
        for row, of_row in spec.rows.items()
        for column, words in spec.columns.items()
        for candidate in (spec.candidates(row) if row in spec.tune else [None])
    ]
    with Composer() as composer:
        for row, column, candidate, overrides in counted(places, f"table={name}: composing cells"):
            try:
                if tuple(overrides) not in known:
                    composed = composer.compose([*overrides, *more])
                    known[tuple(overrides)] = (
                        composed,
                        configs_of_seeds(composed, spec.seeds),
                        composer.picked(overrides),
                    )
            except MissingFile as error:
                if absent is None:
                    raise MissingFile(f"table={name}: {row}, {column}: {error}", file=error.file) from None
                absent.append(_without_file(row, column, candidate, overrides, composer.picked(overrides), error))
                continue
            except ConfigError as error:
                raise ConfigError(*(f"table={name}: {row}, {column}: {line}" for line in error.lines)) from None
            yield row, column, candidate, overrides, *known[tuple(overrides)]


def _planned(run: RunConfig, files: dict[str, PlannedFile | str], data: dict[str, PlannedData]) -> PlannedRun:
    needs = {role: _planned(other, files, data) for role, other in run.method_class.requires(run).items()}
    return planned_run(run, run_dir(run), needs, files, data)


def planned_run(
    run: RunConfig, place: str, needs: dict[str, PlannedRun], files: dict[str, PlannedFile | str],
    data: dict[str, PlannedData],
) -> PlannedRun:  # fmt: skip
    """A run in its place. The files that its key has the content of, and its data, go into `files` and `data`."""
    net = run.students[0].name if run.students else run.method.name
    files |= {path: PlannedFile.of(path, key, file) for key, path, file in named_files(run)}
    name = data_id(run)
    if name not in data:
        data[name] = PlannedData.of(run)
    return PlannedRun(seed=run.seed, place=place, net=net, needs=needs, data=name)


def data_id(run: RunConfig) -> str:
    return json_hash(unsplit(run.dataset).model_dump_json())


def on_present_data(plan: P, outputs: Path, most: float = QUICK) -> P:
    """The same plan, with other places for runs whose place holds one on other data than there are now."""
    taken = {run.data for cell in plan.cells for run in _all(cell.runs) if trained_on(outputs / run.place) is not None}
    contents = {name: _content(plan.data[name], outputs, most) for name in taken & set(plan.data)}
    if not any(contents.values()):
        return plan

    def moved(run: PlannedRun) -> PlannedRun:
        needs, ours = {role: moved(other) for role, other in run.needs.items()}, contents.get(run.data)
        theirs = None if ours is None else trained_on(outputs / run.place)
        place = run.place
        if ours is not None and theirs not in (None, ours):
            before, _, key = place.rpartition("-")
            place = f"{before}-{key_on(ours, key)}"
        return run.replace(place=place, needs=needs)

    return plan.replace(cells=[cell.replace(runs=[moved(run) for run in cell.runs]) for cell in plan.cells])


def _all(runs: Iterable[PlannedRun]) -> Iterator[PlannedRun]:
    for run in runs:
        yield run
        yield from _all(run.needs.values())


def _content(data: PlannedData, outputs: Path, most: float) -> str | None:
    try:
        return found(data.typed.offline(), outputs).content(most)
    except ConfigError:  # they are not there
        return None


def plan_in(path: Path, digest: str, kind: type[P]) -> P | None:
    """What `keep` wrote there under this digest; None: it is not there, or files or data are not as they were."""
    value = kept(path, digest)
    try:
        plan = None if value is None else build(kind, value, str(path))
    except ConfigError as error:
        log.debug("%s: %s", path, error)
        return None
    if plan is None:
        return None
    files = all(isinstance(file, PlannedFile) and file.stays(path) for path, file in plan.files.items())
    return plan if files and all(data.stays() for data in plan.data.values()) else None
