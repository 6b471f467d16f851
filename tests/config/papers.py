"""What of a paper's numbers the tables show, and the lines of its YAML file that say nothing for those that none shows."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import yaml

from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.core.schema import build
from kdrun.results import fill
from kdrun.results.papers import Paper, PaperCell
from kdrun.results.spec import TableConfig, table_spec
from kdrun.runs.metric import Metric

Number = tuple[str, str, str, float | None, float | None, int | None]


def tables_beside(paper: str) -> dict[str, TableConfig]:
    """Of conf/table."""
    specs = {path.stem: table_spec(path.stem) for path in sorted((CONF_DIR / "table").glob("*.yaml"))}
    return {name: spec for name, spec in specs.items() if spec.paper == paper}


def number(cell: PaperCell) -> Number:
    return cell.row, cell.column, cell.metric, cell.mean, cell.std, cell.n


def run_by(specs: dict[str, TableConfig], metrics: Iterable[str]) -> dict[Number, list[str]]:
    """The numbers that stand beside a row that is run -> the tables."""
    found: dict[Number, list[str]] = defaultdict(list)
    for name, spec in specs.items():
        for metric in metrics:
            table = fill.empty_table(name, spec, str(replace(Metric.parse(spec.metric), name=metric)), spec.protocol)
            for row in table.rows:
                for column in table.columns:
                    if (cell := table.theirs(row, column)) is not None and name not in found[number(cell)]:
                        found[number(cell)].append(name)
    return found


def faults(path: Path, specs: dict[str, TableConfig]) -> list[str]:
    """What is wrong with conf/paper/<name>.yaml, with its lines: a number that does not type, that no table runs and
    nothing says why, or that a table runs though something says why not."""
    text = path.read_text("utf-8")
    [cells] = [value for key, value in yaml.compose(text, yaml.CSafeLoader).value if key.value == "cells"]
    lines = [f"{path.name}:{cell.start_mark.line + 1}" for cell in cells.value]
    content = yaml.load(text, yaml.CSafeLoader)
    try:
        paper = build(Paper, content, path.name)
    except ConfigError as error:
        return [_with_line(line, path.name, lines) for line in error.lines]
    with patch.object(fill, "read_paper", lambda _: paper):  # this file's, which may be no shipped one
        run = run_by(specs, {cell.metric for cell in paper.cells})
    out = []
    for line, cell in zip(lines, paper.cells, strict=True):
        told = f"{line}: {cell.table}, {cell.row}, {cell.column}, {cell.metric}"
        tables, why = run.get(number(cell), []), paper.why(cell)
        if tables and why:
            out.append(f"{told}: table={tables[0]} runs it, though published_only says {why!r}")
        elif not tables and not why and cell.mean is not None:
            out.append(f"{told}: no table runs it; add one, or say why not in published_only")
    return out


def _with_line(told: str, name: str, lines: list[str]) -> str:
    """`dho.yaml.cells.3.tag: missing` with the line of the fourth cell."""
    key, _, rest = told.removeprefix(f"{name}.cells.").partition(".")
    return f"{lines[int(key)]}: {rest}" if key.isdecimal() else told
