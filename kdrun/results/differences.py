"""Rows of a table against each other: the difference of two cells, and which cells of a column are its best."""

from collections.abc import Mapping
from statistics import mean, stdev

from kdrun.results.cell import Cell, Place, scaled
from kdrun.results.intervals import Interval, paired_interval, welch
from kdrun.results.table import Table
from kdrun.runs.metric import HIGHER, LOWER, Metric


def between(a: Cell, b: Cell, percent: bool) -> Interval | None:
    """The mean of `a` minus that of `b`: paired by seed where they share two seeds or more, else of independent runs.

    None: no interval, a side has a single value.
    """
    if (found := paired_interval(scaled(a.minus(b), percent))) is not None:
        return found
    x, y = (scaled(cell.values.values(), percent) for cell in (a, b))
    if min(len(x), len(y)) < 2:
        return None
    return welch(mean(x), stdev(x), len(x), mean(y), stdev(y), len(y))


def better(metric: str) -> int:
    """1: more is better, -1: less is, 0: neither is."""
    name = Metric.parse(metric).name.removeprefix("scaled_")
    return (name in HIGHER) - (name in LOWER)


def best_in(table: Table) -> dict[Place, bool]:
    """Of each column the best mean (True), and those that chance alone may part from it: the 95 % interval holds 0.

    Where a side has one value there is no interval, and it must be equal. A column with one value has no best.
    """
    sign = better(table.metric)
    found: dict[Place, bool] = {}
    for column in table.columns if sign else ():
        cells = {row: table.cell(row, column) for row in table.rows if table.cell(row, column).values}
        if len(cells) > 1:
            found |= {(row, column): first for row, first in _best(cells, sign, table.percent).items()}
    return found


def _best(cells: Mapping[str, Cell], sign: int, percent: bool) -> dict[str, bool]:
    means = {row: mean(cell.values.values()) for row, cell in cells.items()}
    top = max(means, key=lambda row: sign * means[row])
    out = {row: True for row, value in means.items() if value == means[top]}
    for row in cells:
        interval = None if row in out else between(cells[top], cells[row], percent)
        if interval is not None and interval.holds_zero:
            out[row] = False
    return out
