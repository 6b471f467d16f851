"""Put records and tables into outputs/published/<table>, and into the pages that show them.

kdrun publish table=demo                           from outputs/runs
kdrun publish table=demo metric=test/top1 metric=test/ece columns=params,flops outputs=outputs
kdrun publish table=kd_fixmatch_digits metric=test/top1 curve=train/mask_rate:8    over training too
kdrun publish table=ttm_cifar100_short override=dataset.verify_md5=false           as the runs were made
kdrun publish table=demo again=true                the texts anew from the published records, no runs
kdrun publish check=true                           all published tables; exit 1: `again` would change one
kdrun publish table=demo check=true compose=true   and whether conf/ still plans these very runs
Markers: <!-- table demo --> and <!-- /table demo --> in a page (README.md, docs/results/*.md; pages=<file or folder>),
<!-- tables --> and <!-- /tables --> in table.md.
"""

import json
import lzma
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from kdrun.cli.own import own_conf
from kdrun.cli.table import extras_in
from kdrun.config.values import leaves
from kdrun.core.errors import ConfigError, KdrunError, Unfinished
from kdrun.core.files import folder, write_bytes, write_text
from kdrun.core.schema import Schema, from_arguments
from kdrun.core.sums import sealed
from kdrun.results.fill import CurveReader, Reader, curve_reader, curve_table, curves_of, reader
from kdrun.results.formats import to_json
from kdrun.results.plan import PlannedRun, TablePlan, make_plan, plan_of
from kdrun.results.published import (
    PACKED,
    PLAIN,
    Published,
    Shown,
    is_published,
    key_in,
    published_reader,
    published_table,
    read_published,
)
from kdrun.results.spec import TableConfig, table_spec
from kdrun.results.table import Table
from kdrun.runs.record import Record, finite

BEGIN, END = "<!-- tables -->", "<!-- /tables -->"
MOST = 1_000_000  # bytes of a published file
PLAINLY = 200_000  # bytes of records that are put there as text; more of them are packed
MACHINE = re.compile(r"(^|[\s=:\[,])(/(?!/)|~\w*/|[A-Za-z]:\\|\\\\|file:/)")
"""What begins like an absolute path."""


class Options(Schema):
    """`table=<name> [metric=...] [curve=...] [again=true|check=true] [outputs=] [published=] [pages=]`."""

    table: str | None = None
    metric: list[str] = Field(default_factory=list)
    """A table of each; none and no curve: those that were published, else that of conf/table."""
    curve: list[str] = Field(default_factory=list)
    """<metric>:<points>, a table over training of each."""
    columns: str = ""
    """Further columns of the first table, as of `kdrun table`."""
    override: list[str] = Field(default_factory=list)
    """What the runs had beside conf/table, such as where their data lay; none: what was published."""
    again: bool = False
    """Make the texts again from the published records; curves that are not published yet come from `outputs`."""
    check: bool = False
    """Write nothing: say where `again` would change something."""
    compose: bool = False
    """With these two: compose the plan anew."""
    outputs: str = "outputs"
    published: str = "outputs/published"
    pages: list[str] = Field(default_factory=lambda: ["README.md", "docs/results"])
    """Markdown files, and folders of them, that show tables between markers."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.again and self.check:
            raise ValueError("again: writes, and check does not; leave one out")
        if self.compose and not (self.again or self.check):
            raise ValueError("compose: goes with again=true or check=true; else the plan is made anew anyway")
        asked = [name for name in ("metric", "curve", "columns", "override") if getattr(self, name)]
        if self.check and asked:
            raise ValueError(f"{asked[0]}: check=true compares what was published; leave it out")
        return self


@own_conf
def main(arguments: Sequence[str]) -> str:
    """Raises Unfinished: with check=true, a text is not what its records make."""
    options = from_arguments(Options, arguments)
    published = Path(options.published)
    if options.table is not None:
        table_spec(options.table)  # refuses a name that is none
    if "outputs" in options.model_fields_set:
        folder(options.outputs, "outputs")
    if options.check:
        names = [options.table] if options.table else sorted(p.name for p in _folders(published))
        wrong = [line for name in names for line in _differences(name, published / name, options)]
        if wrong:
            raise Unfinished("", *wrong)
        return f"as their records make them: {', '.join(names) or 'nothing is published'}"
    if options.table is None:
        raise ConfigError("table: missing; a value is required")
    place, outputs = published / options.table, Path(options.outputs)
    pages = _pages(options)
    lines = []
    if options.again:
        told = _again(options.table, place, options)
        records = published_reader(place)
    else:
        told = _new(options.table, place, options)
        found = list(_behind(options.table, told.plan, outputs))
        _write_records(place, found)
        records = reader(outputs)
        lines.append(f"wrote {place}: {len(found)} records")
    for key, value in _paths(told.model_dump()):
        raise KdrunError(f"{place}: would hold a path of this machine, {key}: {value}; make it relative")
    for path, text in _files(options.table, place, told, records, pages).items():
        if not path.is_file() or _lines(path.read_text("utf-8")) != _lines(text):
            write_text(path, text)
            lines.append(f"wrote {path}")
    return "\n".join(lines) or f"{place}: nothing has changed"


def _folders(published: Path) -> list[Path]:
    """Of tables; one with a bench.json holds what `make bench` measured."""
    found = [path for path in folder(published, "published").iterdir() if path.is_dir()]
    return [path for path in found if not (path / "bench.json").is_file()]


def _pages(options: Options) -> list[Path]:
    """The Markdown files. Raises ConfigError where one that was named is not there."""
    found: list[Path] = []
    for given in map(Path, options.pages):
        if given.is_dir():
            found += sorted(given.rglob("*.md"))
        elif given.is_file():
            found.append(given)
        elif "pages" in options.model_fields_set:
            raise ConfigError(f"pages: {given}: no such file or folder")
    return found


def _new(name: str, place: Path, options: Options) -> Published:
    """Planned now, with curves from the runs."""
    old = read_published(place) if is_published(place) else None
    override = options.override or (old.override if old else [])
    spec = _spec(name, override)
    outputs = Path(options.outputs)
    plan = make_plan(name, spec) if override else plan_of(name, spec, outputs)
    shows = _shows(spec, old, options)
    curves = _curves(name, spec, plan, shows, curve_reader(outputs))
    return Published(override=override, spec=spec, shows=shows, curves=curves, plan=plan)


def _again(name: str, place: Path, options: Options) -> Published:
    """What is there, with conf/table as it is now; composed only where that has changed, or if asked to."""
    old = read_published(place) if is_published(place) else None
    override = options.override or (old.override if old else [])
    spec = _spec(name, override)
    kept = old is not None and old.spec == spec and not options.compose
    plan = old.plan if old is not None and kept else make_plan(name, spec)
    shows = _shows(spec, old, options)
    known = old.curves if old else {}
    fresh = [show for show in shows if show.curve and show.metric not in known]
    curves = {show.metric: known[show.metric] for show in shows if show.metric in known}
    curves |= _curves(name, spec, plan, fresh, curve_reader(Path(options.outputs)))
    return Published(override=override, spec=spec, shows=shows, curves=curves, plan=plan)


def _spec(name: str, override: Sequence[str]) -> TableConfig:
    spec = table_spec(name)
    return spec.replace(columns={column: [*words, *override] for column, words in spec.columns.items()})


def _shows(spec: TableConfig, old: Published | None, options: Options) -> list[Shown]:
    if not (options.metric or options.curve or options.columns) and old is not None:
        return old.shows
    shows = [Shown(metric=metric) for metric in options.metric or [spec.metric]]
    extras_in(options.columns)
    shows[0] = shows[0].replace(columns=options.columns)
    for given in options.curve:
        metric, _, points = given.rpartition(":")
        if not metric or not points.isdecimal() or points == "0":
            raise ConfigError(f"curve: {given}: write <metric>:<points>, such as train/mask_rate:8")
        shows.append(Shown(metric=metric, curve=int(points)))
    return shows


def _curves(
    name: str, spec: TableConfig, plan: TablePlan, shows: Sequence[Shown], read: CurveReader
) -> dict[str, dict[str, dict[str, float]]]:
    """The points that the tables show, and no more."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for show in shows:
        if show.curve:
            shown = curves_of(name, spec, plan, read, show.metric)
            steps = set(curve_table(name, shown, show.metric, show.curve).columns)
            found = {key_in(run.place): read(run.place, show.metric) for cell in plan.cells for run in cell.runs}
            points = {key: {str(k): v for k, v in curve.items() if str(k) in steps} for key, curve in found.items()}
            out.setdefault(show.metric, {}).update({key: curve for key, curve in points.items() if curve})
    return out


def _write_records(place: Path, records: Sequence[Record]) -> None:
    """records.jsonl, or records.jsonl.xz where that would be too large."""
    lines = [json.dumps(sealed(finite(record)), ensure_ascii=False) + "\n" for record in records]
    text = "".join(lines).encode(errors="backslashreplace")  # names that are no text, as in record.json
    packed = len(text) > PLAINLY
    write_bytes(place / (PACKED if packed else PLAIN), lzma.compress(text) if packed else text)
    (place / (PLAIN if packed else PACKED)).unlink(missing_ok=True)


def _behind(name: str, plan: TablePlan, outputs: Path) -> Iterator[Record]:
    """The record of each run of a table and of what they need, once.

    Raises:
        KdrunError: a run is not done, or its record holds a path of this machine.
    """
    read, seen = reader(outputs), set[str]()

    def each(run: PlannedRun) -> Iterator[Record]:
        for other in run.needs.values():
            yield from each(other)
        if run.place not in seen:
            seen.add(run.place)
            record = read(run.place)
            if record is not None and record["status"] != "running":
                record = _anywhere(record)
                for key, value in _paths(record):
                    raise KdrunError(
                        f"{outputs / run.place}: its record holds a path of this machine, {key}: {value}; "
                        "run it with a path that is relative to the working directory"
                    )
                yield record

    found = [record for cell in plan.cells for run in cell.runs for record in each(run)]
    if not any(record["status"] == "done" for record in found):
        raise KdrunError(f"table={name}: none of its runs is done in {outputs}")
    yield from found


def _anywhere(record: Record) -> Record:
    """Without the folder that the run was made in, which is no part of what it is."""
    execution = record["config"].get("execution", {})
    if not MACHINE.search(str(execution.get("outputs", ""))):
        return record
    words = [word for word in record["overrides"] if not word.startswith("execution.outputs=")]
    config = {**record["config"], "execution": {**execution, "outputs": "outputs"}}
    return {**record, "config": config, "overrides": words}


def _paths(node: Any) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in leaves(node) if isinstance(value, str) and MACHINE.search(value))


def _files(name: str, place: Path, told: Published, read: Reader, pages: Sequence[Path]) -> dict[Path, str]:
    """What the generated files hold: published.json, table.json, table.md, and the pages that show the table."""
    tables = [_table(name, place, told, show, read) for show in told.shows]
    for table in tables[1:]:
        table.claims = []  # which are of figures of their own, whatever a table shows
    whole = [json.loads(to_json(table)) for table in tables]
    markdown = [table.to_markdown() for table in tables]
    plain = told.replace(plan=told.plan.published()).model_dump(exclude_defaults=True)
    out = {
        place / "published.json": json.dumps(plain, indent=1, ensure_ascii=False) + "\n",
        place / "table.json": json.dumps(whole, indent=1, ensure_ascii=False) + "\n",
        place / "table.md": f"{BEGIN}\n{_joined(markdown)}\n{END}\n",
    }
    if (place / "table.md").is_file():
        out[place / "table.md"] = _replaced(place / "table.md", BEGIN, END, _joined(markdown))
    begin, end = f"<!-- table {name} -->", f"<!-- /table {name} -->"
    shown = [page for page in pages if begin in page.read_text("utf-8")]
    return out | {page: _replaced(page, begin, end, markdown[0]) for page in shown}


def _joined(markdown: Sequence[str]) -> str:
    return "\n\n".join(markdown)


def _table(name: str, place: Path, told: Published, show: Shown, read: Reader) -> Table:
    table = published_table(name, place, told, read, show.metric, show.curve)
    if show.curve is None:
        table.extras = extras_in(show.columns)
    return table


def _differences(name: str, place: Path, options: Options) -> list[str]:
    """What is not as the published records make it, too large, or planned otherwise by now."""
    old = read_published(place)
    wrong = [
        f"{path}: has {path.stat().st_size:,} bytes, more than {MOST:,}"
        for path in sorted(place.iterdir())
        if path.stat().st_size > MOST
    ]
    anew = f"run kdrun publish table={name} again=true"
    if old.spec != _spec(name, old.override):
        return [*wrong, f"{place / 'published.json'}: conf/table/{name}.yaml says something else by now; {anew}"]
    told = _again(name, place, options.replace(metric=[], curve=[], columns="", override=[]))
    files = _files(name, place, told, published_reader(place), _pages(options))
    for path, text in files.items():
        if not path.is_file() or _lines(path.read_text("utf-8")) != _lines(text):
            made = f"is not what {place / 'records.jsonl'} makes"
            wrong.append(f"{path}: table={name} {made}; {anew} and look at what changes")
    return wrong


def _lines(text: str) -> list[str]:
    """Without the spaces at the ends of lines, which editors take away."""
    return [line.rstrip() for line in text.splitlines()]


def _replaced(path: Path, begin: str, end: str, text: str) -> str:
    """The file with another text between its markers; what stands around them stays."""
    before, found, rest = path.read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise KdrunError(f"{path}: has no {begin} ... {end}; put them around the part that is generated")
    return f"{before}{begin}\n{text}\n{end}{after}"
