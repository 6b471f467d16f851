"""A table as a report that one attaches to a paper: values, the runs behind them, pictures, cost, differences."""

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from pathlib import Path

from kdrun.core.version import __version__
from kdrun.results.cell import scaled
from kdrun.results.fill import CurveReader
from kdrun.results.report.behind import of_cost, of_differences, of_environment, of_runs
from kdrun.results.report.classes import of_classes
from kdrun.results.report.front import of_table
from kdrun.results.report.page import Text, grid, marked, number, page, signed
from kdrun.results.report.pairs import of_pairs
from kdrun.results.report.pictures import of_curves, of_labels, of_reliability, of_seeds
from kdrun.results.table import Table


@dataclass(frozen=True)
class Source:
    """Where the runs of a report lie, and how it is made.

    Args:
        command: that makes it.
        curves: of what runs have logged.
        page: the file that is written.
        published: whether there are records alone, without the files of the runs.
        day: None: today.
    """

    outputs: Path
    command: Sequence[str]
    curves: CurveReader
    page: Path
    published: bool = False
    day: date | None = None

    @property
    def linked(self) -> Path | None:
        """The page, if links to the folders of runs lead somewhere: it lies in the outputs folder."""
        return self.page if self.page.resolve().is_relative_to(self.outputs.resolve()) else None


def html(table: Table, source: Source) -> str:
    """The report of a table whose cells hold their runs and records."""
    sections = [
        ("Table", of_table(table)),
        ("Notes", _notes(table)),
        ("Claims", _claims(table)),
        ("Against the paper", _paper(table)),
        ("Rows against each other", of_pairs(table)),
        ("Seeds", of_seeds(table)),
        ("By number of labels", of_labels(table)),
        ("Learning curves", of_curves(table, source.curves)),
        ("Reliability", of_reliability(table, source.outputs)),
        ("Classes", of_classes(table, source.outputs)),
        ("Cost", of_cost(table)),
        ("What differs between rows", of_differences(table)),
        ("Environment", of_environment(table)),
        ("Runs", of_runs(table, source.outputs, source.linked)),
    ]
    done = sum(len(cell.values) for cell in table.cells.values() if not cell.parts)
    planned = sum(cell.planned for cell in table.cells.values() if not cell.parts)
    lead = [table.about, f"{table.measure}. {done} of {planned} planned values are there."]
    if source.published:
        lead.append("Made from published records: reliability and classes, which need predictions, are left out.")
    return page(f"{table.title}: {table.metric}", [line for line in lead if line], _made(source), sections)


def _made(source: Source) -> str:
    day = source.day or date.today()
    command = shlex.join(["kdrun", "table", *source.command])
    return f"{day.isoformat()}, kdrun {__version__}: <code>{escape(command)}</code>"


def _notes(table: Table) -> str:
    """Deviations and what is ours, lettered as in the table; then what else stands below it."""
    items = []
    for k, (kind, text, at, _) in enumerate(table.footnotes() if table.paper is not None else [], start=1):
        told = f"{'Deviates' if kind == 'deviates' else 'Ours'}{f' ({at})' if at else ' (all cells)'}: {text}"
        items.append(f'<li id="note-{k}">{marked(told)}</li>')
    left_out = ("claim ", "paper: ", "deviates", "ours", table.measure)
    rest = [line for line in table.footer() if not line.startswith(left_out)]
    notes = f'<ol class="notes">{"".join(items)}</ol>' if items else ""
    return notes + "".join(f'<p class="note">{marked(line)}</p>' for line in rest)


def _claims(table: Table) -> str:
    kinds = {"holds": "good", "fails": "bad"}
    rows: list[list[Text]] = [
        [
            marked(v.claim.name), f'<b class="{kinds.get(v.verdict, "none")}">{v.verdict}</b>',
            marked(signed(v.detail)), v.claim.tag,
        ]
        for v in table.claims
    ]  # fmt: skip
    return grid("claims", ["claim", "verdict", "values", "known from"], rows) if rows else ""


def _paper(table: Table) -> str:
    rows: list[list[Text]] = []
    for row, column in table.cells:
        theirs, cell = table.theirs(row, column), table.cells[row, column]
        if theirs is None or theirs.mean is None:
            continue
        against = cell.against(theirs)
        values = scaled(cell.values.values(), table.percent)
        ours = number(statistics.mean(values), 2) if values else ""
        ends = "" if against is None or against.interval is None else (
            f"{against.interval.low:+z.2f} to {against.interval.high:+z.2f}"
        )  # fmt: skip
        n = "" if theirs.n is None else f" (n={theirs.n})"
        difference = "" if against is None else f"{against.difference:+z.2f}"
        texts = (row, column, ours, f"{theirs.printed()}{n}", difference, ends, against.verdict if against else "")
        rows.append([escape(signed(text) if i > 1 else text) for i, text in enumerate(texts)])
    if not rows or table.paper is None:
        return ""
    header = ["row", "column", "ours", escape(table.paper.source), "difference", "95 % (Welch)", "within the spread"]
    told = '<p class="note">n/a: the paper gives no standard deviation or no n, or one side has a single run.</p>'
    return grid("ours against the paper's", header, rows, (2, 3, 4, 5)) + told
