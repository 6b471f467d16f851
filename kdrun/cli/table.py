"""Print a table of mean ± std over seeds, plan it, make what is missing, hold it against its paper.

kdrun table                          every run below outputs/; format=html: a report, outputs/reports/runs.html
kdrun table where=[loss=kd,seed=[0,1]]      those that chose this loss (ce: it alone), and have one of these seeds
kdrun table table=demo               the plan of conf/table/demo.yaml, missing seeds shown
kdrun table table=demo plan=true     what is done, needed first, missing, and about how long it will take
kdrun table table=demo dry=true      with the commands that make what is missing
kdrun table table=demo execute=true  makes it; override=execution.threads=1, override=engine.slots=2
kdrun table table=demo metric=test/ece format=markdown outputs=outputs protocol=best_on_val
kdrun table table=demo format=html   a report, outputs/reports/demo.html; also latex, csv, json; out=
kdrun table --config-dir my_conf table=mine           a table of your own, my_conf/table/mine.yaml
kdrun table outputs=outputs/published/demo format=html           of published records, report.html beside them
kdrun table table=demo spread=minmax columns=params,flops,seconds,images_per_second,teacher,test/ece
kdrun table table=demo compare=KD,CE                the same seeds, paired; also of found rows, without table=
kdrun table table=kd_fixmatch_digits metric=train/mask_rate curve=8        over training, at some steps
kdrun table table=kd_fixmatch_digits metric=trusted_label/precision        a value of an artifact
protocol: last, best_on_val, median20 (the median of the last 20 evaluations)
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdrun.cli.own import own_conf
from kdrun.cli.plan import require_possible
from kdrun.core.errors import ConfigError, Unfinished, allowed
from kdrun.core.files import folder, place_for, write_text
from kdrun.core.later import later
from kdrun.core.paths import conf_words
from kdrun.core.schema import Schema, from_arguments
from kdrun.results.fill import CurveReader, curve_reader, curve_table, planned_curves, planned_table
from kdrun.results.filters import Filters, words_of
from kdrun.results.formats import to_csv, to_json, to_latex, to_terminal
from kdrun.results.found import found_curves, found_table
from kdrun.results.jobs import table_jobs
from kdrun.results.plan import plan_of
from kdrun.results.progress import Todo, progress_text
from kdrun.results.published import is_published, published_reader, published_table, read_published
from kdrun.results.report.report import Source, html
from kdrun.results.spec import Protocol, about, table_spec
from kdrun.results.table import EXTRAS, Table, comparison, refuse_empty_extras, two_rows
from kdrun.runs.place import settled

if TYPE_CHECKING:
    from kdrun.cli.carrying import carry_out as on_engine
    from kdrun.training.engines.engine import engine_of
else:
    engine_of = later("kdrun.training.engines.engine", "engine_of")
    on_engine = later("kdrun.cli.carrying", "carry_out")


class TableOptions(Schema):
    table: str | None = None
    outputs: str = "outputs"
    metric: str | None = None
    protocol: Protocol | None = None
    format: Literal["text", "markdown", "latex", "csv", "json", "html"] = "text"
    out: str | None = None
    """A file for it; null: printed, but html goes to <outputs>/reports/<table>.html, without a table runs.html."""
    where: list[str] = Field(default_factory=list)
    """Without a table, which runs: `[loss=kd,schedule.lr=0.1,seed=[0,1]]`, by any keys of the configuration, or by what
    a group chose: method, loss (ce: it alone), student, teacher, dataset."""
    curve: int | None = Field(None, gt=0)
    """Show the metric over training, at about so many steps."""
    spread: Literal["std", "minmax"] = "std"
    """minmax: the least and the greatest value too."""
    columns: str = ""
    """Further columns: params,flops,seconds,images_per_second,inference_per_second,steps,teacher or metrics."""
    compare: str | None = None
    """Two rows, rowA,rowB: their difference over the same seeds."""
    plan: bool = False
    """Show what is done, missing, needed first, and what it will take."""
    dry: bool = False
    """With the commands that make what is missing."""
    execute: bool = False
    """Make what is missing."""
    override: list[str] = Field(default_factory=list)
    """More of the command line for what is made (an engine, a device, threads); what changes run keys is refused."""

    @field_validator("override")
    @classmethod
    def as_a_list(cls, value: list[str]) -> list[str]:
        """`override=[a,b]` is `override=a override=b`."""
        return [word for given in value for word in (words_of(given) if given.startswith("[") else [given])]

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.table is None and not is_published(Path(self.outputs)):  # whose folder names it
            for name in ("plan", "dry", "execute"):
                if getattr(self, name):
                    raise ValueError(f"{name}: give table=<name> too")
        elif self.table is not None and self.where:
            raise ValueError("where: goes without a table, which plans its runs; leave one out")
        if self.metric is not None and "/" not in self.metric and self.curve is None:
            raise ValueError(f"metric: {self.metric}: write <images>/<metric>, such as test/top1 or val/student/ece")
        if self.execute and (self.plan or self.dry):
            raise ValueError("execute: goes with neither plan=true nor dry=true; leave one out")
        shown = {"metric", "protocol", "format", "out", "curve", "spread", "columns", "compare"} & self.model_fields_set
        if (self.plan or self.dry) and shown:
            raise ValueError(f"{min(shown)}: a plan has no values; leave it out, or plan and dry")
        idle = {"protocol", "columns", "compare"} & self.model_fields_set
        if self.curve is not None and idle:
            raise ValueError(f"{min(idle)}: not of a table over training (curve); leave one out")
        if self.curve is not None and self.metric is None:
            raise ValueError("curve: give metric=<what metrics.jsonl has, e.g. train/mask_rate> too")
        if self.override and not (self.dry or self.execute):
            raise ValueError("override: goes with dry=true or execute=true")
        return self


def extras_in(columns: str) -> list[str]:
    """`params,test/ece` as names. Raises ConfigError for what is no further column."""
    names = [name.strip() for name in columns.split(",") if name.strip()]
    for name in names:
        if name not in EXTRAS and "/" not in name:
            raise ConfigError(f"columns: {name}: no such column{allowed(name, EXTRAS)}, or a metric such as test/ece")
    return names


@own_conf
def main(arguments: Sequence[str]) -> str:
    """The printed table for `key=value` arguments, and `--config-dir`.

    Raises:
        Unfinished: after execute=true, runs that are not done.
    """
    if any(word.startswith("plugins=") for word in arguments):
        raise ConfigError("plugins: stand among the words of a row or column of the table; see docs/extend/plugin.md")
    options = from_arguments(TableOptions, arguments)
    outputs, name = Path(options.outputs), options.table or ""
    extras = extras_in(options.columns)
    out = None if options.out is None else place_for(options.out, "out")
    if not (options.execute or options.plan or options.dry) and options.outputs != "outputs":
        folder(outputs, "outputs")
    if is_published(outputs):
        options = _of_published(options, outputs)
        name = options.table or ""
    elif options.execute:
        carry_out(name, outputs, options.override)
    elif options.plan or options.dry:
        return progress_text(name, outputs, options.override, commands=options.dry)
    table, curves = _table(options, outputs, extras)
    if options.format == "html":
        published = is_published(outputs)
        path = out or (outputs / "report.html" if published else outputs / "reports" / f"{name or 'runs'}.html")
        write_text(path, html(table, Source(outputs, _command(arguments), curves, path, published)))
        return f"wrote {path}"
    writers = {"markdown": Table.to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
    plain = to_terminal if out is None and sys.stdout.isatty() else Table.to_text
    text = writers.get(options.format, plain)(table)
    if out is None:
        return text
    write_text(out, text + "\n")
    return f"wrote {options.out}"


def _command(arguments: Sequence[str]) -> list[str]:
    """What makes the same report, wherever it goes."""
    return [*conf_words(), *(word for word in arguments if not word.startswith("out="))]


def _of_published(options: TableOptions, place: Path) -> TableOptions:
    """The same, of the table whose records lie there.

    Raises:
        ConfigError: another table was asked for, or what needs runs.
    """
    name = place.resolve().name
    for asked in ("plan", "dry", "execute", "where"):
        if getattr(options, asked):
            raise ConfigError(f"{asked}: {place} holds published records alone, no runs; leave it out")
    if options.table not in (None, name):
        raise ConfigError(f"table: {options.table}: {place} holds another table, {name}; leave one out")
    return options.replace(table=name)


def _table(options: TableOptions, outputs: Path, extras: list[str]) -> tuple[Table, CurveReader]:
    """The table, and what reads learning curves of its runs."""
    name, curve, curves = options.table, options.curve, curve_reader(outputs)
    if name is None:
        table = _found(options, outputs, curves, keep=options.format == "html" or bool(extras))
    elif is_published(outputs):
        told = read_published(outputs)
        curves = told.read_curve
        read, metric = published_reader(outputs), options.metric or told.shows[0].metric
        table = published_table(name, outputs, told, read, metric, curve, options.protocol)
    elif curve is not None:
        table = curve_table(name, planned_curves(name, outputs, options.metric or ""), options.metric or "", curve)
    else:
        table = planned_table(name, outputs, options.metric, options.protocol)
    if name is not None:
        table.about = about(name)
    if curve is None:
        table.extras = extras
        refuse_empty_extras(table)
        if options.compare is not None:
            table.notes += comparison(table, *two_rows(options.compare, table.rows))
    table.minmax = options.spread == "minmax"
    return table, curves


def _found(options: TableOptions, outputs: Path, curves: CurveReader, keep: bool) -> Table:
    """Of whatever runs there are; `keep` as `found_table` has it."""
    filters, metric = Filters.where(options.where), options.metric or "test/top1"
    if options.curve is None:
        return found_table(outputs, metric, options.protocol or "last", filters, keep)
    return curve_table(str(outputs), found_curves(outputs, filters, curves, metric), metric, options.curve)


def carry_out(name: str, outputs: Path, extra: Sequence[str]) -> None:
    """Make what is missing, and what that needs, on an engine. All of it is checked before anything runs.

    Raises:
        ConfigError: one line for each mistake; or an override changes what the table plans.
        Unfinished: names what is not done.
    """
    spec = table_spec(name)
    if asked := [word for word in extra if word.lstrip("+").startswith("hydra/")]:
        raise ConfigError(f"override: {asked[0]}: a table is made on an engine; give override=engine=local, ray, slurm")
    if asked := [word for word in extra if word.lstrip("+").startswith(("search=", "search.", "objective="))]:
        raise ConfigError(f"override: {asked[0]}: a table plans its runs beforehand; give it candidates (tune)")
    made = table_jobs(name, spec, outputs, extra)  # before the plan, which it keeps: cells are composed once
    todo = Todo.of(plan_of(name, spec, outputs, math.inf), outputs)
    if all(state.state == "done" for state in todo.states.values()) and not extra:
        return
    kind, engine = engine_of(made.settings.engine)
    kind.prepare(engine)
    planned = {run.place for cell in todo.plan.cells for run in cell.runs}
    jobs = [settled(job) for job in made.jobs]
    for job in jobs:
        if job.place not in planned:
            raise ConfigError(f"override: {' '.join(extra)}: makes {job.directory}, which table={name} does not plan")
    require_possible(jobs)
    if on_engine(jobs, made.settings):
        left = Todo.of(todo.plan, outputs)
        bad = [
            f"{state.state}: {outputs / place}{': ' + state.why if state.why else ''}"
            for place, state in left.states.items()
            if state.state not in ("done", "running")
        ]
        raise Unfinished(progress_text(name, outputs, extra, commands=False), *bad)
