"""Any two rows of a table set side by side: their difference in each column, with its 95 % interval; reliability."""

import json
from html import escape
from math import isnan
from typing import Any

from kdrun.results.differences import between
from kdrun.results.intervals import Interval
from kdrun.results.report.page import Text, grid, signed
from kdrun.results.table import Table

MOST_ROWS = 40
MOST_FOUND = 6000  # differences in a page, about 50 bytes each


def of_pairs(table: Table) -> str:
    """Each row against the first one of a column; and, for the script, each pair of rows."""
    with_values = {c: [row for row in table.rows if table.cell(row, c).values] for c in table.columns}
    columns = [column for column, rows in with_values.items() if len(rows) > 1]
    rows = [row for row in table.rows if any(row in with_values[column] for column in columns)]
    if not columns:
        return ""
    digits = 2 if table.percent else 4
    first = {column: with_values[column][0] for column in columns}
    alike = len(set(first.values())) == 1
    lines: list[list[Text]] = [
        [
            escape(row),
            *(_text(_found(table, row, first[c], c), digits) if row != first[c] else ("", None) for c in columns),
        ]
        for row in rows
        if not (alike and row == first[columns[0]])
    ]
    whom = f"<b>{escape(first[columns[0]])}</b>" if alike else "the first row that the column has"
    unit = " in percentage points" if table.percent else ""
    note = (
        f'<p class="note">Each row minus {whom}{unit}, with the 95 % interval: '
        "paired by seed where two rows share two seeds or more (Student's t), else of independent runs (Welch). Bold: "
        "it does not hold 0. n/a: a single value. Not corrected for the number of rows.</p>"
    )
    heads = [escape(c) if alike else f"{escape(c)} <small>minus {escape(first[c])}</small>" for c in columns]
    against = grid("differences to the first row", ["row", *heads], lines, range(1, len(columns) + 1))
    return _choice(table, rows, columns, digits) + note + against


def _choice(table: Table, rows: list[str], columns: list[str], digits: int) -> str:
    """Two lists to choose from, which the script shows and fills; nothing where the page would become too large."""
    pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    if len(rows) > MOST_ROWS or len(pairs) * len(columns) > MOST_FOUND:
        return ""
    found = {
        f"{i},{j}": [_plain(_found(table, rows[i], rows[j], column), digits) for column in columns] for i, j in pairs
    }
    told = {"rows": rows, "columns": columns, "places": digits, "found": found}
    data = json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")

    def options(chosen: int) -> str:
        return "".join(
            f"<option{' selected' if k == chosen else ''}>{escape(row)}</option>" for k, row in enumerate(rows)
        )

    header = ["column", "difference", "95 % interval", "p", "n"]
    empty: list[list[Text]] = [[escape(column), "", "", "", ""] for column in columns]
    lists = f"<label>Row <select>{options(1)}</select></label><label>minus <select>{options(0)}</select></label>"
    result = grid("the two rows", header, empty, (1, 2, 3)).replace("<div", '<div id="chosen" aria-live="polite"', 1)
    return (
        f'<div id="choice" class="choice" hidden>{lists}{result}<div id="beside" class="figures pair"></div></div>'
        f'<script type="application/json" id="pairs">{data}</script>'
    )


Found = tuple[float, Interval | None, str] | None
"""Difference, its interval, how it was found."""


def _found(table: Table, one: str, other: str, column: str) -> Found:
    a, b = table.cell(one, column), table.cell(other, column)
    if not a.values or not b.values:
        return None
    scale = 100 if table.percent else 1
    interval = between(a, b, table.percent)
    if interval is not None:
        return interval.difference, interval, "seeds" if len(a.minus(b)) > 1 else "runs"
    means = [sum(cell.values.values()) / len(cell.values) for cell in (a, b)]
    return scale * (means[0] - means[1]), None, ""


def _plain(found: Found, digits: int) -> list[Any]:
    if found is None:
        return []
    difference, interval, how = found
    if interval is None:
        return [round(difference, digits)]
    p = None if isnan(interval.p) else round(interval.p, 3)
    ends = [round(end, digits) for end in (interval.low, interval.high)]
    return [round(difference, digits), *ends, p, interval.n, how]


def _text(found: Found, digits: int) -> Text:
    if found is None:
        return "", None
    difference, interval, _ = found
    ends = "n/a" if interval is None else f"{interval.low:+z.{digits}f} to {interval.high:+z.{digits}f}"
    shown = f'{signed(f"{difference:+z.{digits}f}")} <span class="spread">({signed(ends)})</span>'
    return (shown if interval is None or interval.holds_zero else f"<b>{shown}</b>"), difference
