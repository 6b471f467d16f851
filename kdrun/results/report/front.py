"""The table of a report: its values with what they lack, the best of each column, letters of notes, the paper's."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape

from kdrun.results.cell import Place, scaled
from kdrun.results.differences import best_in, better
from kdrun.results.intervals import reach
from kdrun.results.report.page import number, signed, sorts, wide
from kdrun.results.report.page import table as whole
from kdrun.results.table import Table


def of_table(table: Table) -> str:
    header, *lines = table.grid()
    notes, best = numbered(table), best_in(table)
    rows = []
    for k, line in enumerate(lines):
        published = k >= len(table.rows)
        name = list(table.published)[k - len(table.rows)] if published else line[0]
        tag = " <small>(published only)</small>" if published else ""
        shown = [f'<th scope="row">{escape(name)}{tag}</th>']
        for i, text in enumerate(line[1:]):
            place = name, table.columns[i] if i < len(table.columns) else ""
            if place not in table.cells:
                shown.append(f'<td class="n">{escape(text)}</td>')
                continue
            by = sorts(statistics.mean(values) if (values := table.cells[place].values.values()) else None)
            mark = {True: " best first", False: " best", None: ""}[best.get(place)]
            shown.append(f'<td class="n{mark}"{by}>{_value(table, place, notes, best)}</td>')
        kind = ' class="published"' if published else ""
        rows.append(f"<tr{kind}>{''.join(shown)}</tr>")
    first = ' data-first="descending"' if better(table.metric) > 0 else ""
    head = "".join(
        f'<th scope="col"{f" class=n{first}" if i else ""}>{escape(text)}</th>' for i, text in enumerate(header)
    )
    return wide("the table", whole(f"<thead><tr>{head}</tr></thead>", rows, "main")) + (_marked(table) if best else "")


def _marked(table: Table) -> str:
    """What the marks mean, and how little they tell of few seeds."""
    seeds = max(len(cell.values) for cell in table.cells.values())
    wide = f" With {seeds} seeds the interval reaches {reach(seeds):.1f} standard errors to each side: hardly a row is"
    return f'<p class="note">{_MARKED}{f"{wide} told apart." if 1 < seeds < 4 else ""}</p>'


_MARKED = (
    '<span class="best first"><span class="value">Bold</span></span>: the best mean of a column. '
    '<span class="best"><span class="value">Marked</span></span>: what chance alone may part from it, the 95 % '
    "interval of the difference holds 0 (Student's t, paired by seed where the two share two seeds or more, else "
    "Welch's; not corrected for the number of rows)."
)


def _value(table: Table, place: Place, notes: Mapping[Place, Sequence[int]], best: Mapping[Place, bool]) -> str:
    """`96.25 ± 1.32 n=3`, the paper's number below, what is wrong with it, the letters of its notes."""
    cell, theirs = table.cells[place], table.theirs(*place)
    digits = 2 if table.percent else 4
    values = scaled(cell.values.values(), table.percent)
    marks = ", ".join(f'<a href="#note-{k}">{_letter(k)}</a>' for k in notes.get(place, ()))
    sup = f"<sup>{marks}</sup>" if marks else ""
    count = f"{len(values)}" + (f"/{cell.planned}" if cell.planned > len(values) else "")
    link = f'href="#{anchor_of(table, place)}" title="the runs behind it"'
    told = f'<a class="count" {link}>n={count}</a>' if cell.runs else f'<span class="count">n={count}</span>'
    meant = {True: "the best of its column", False: "not apart from the best of its column"}
    title = f' title="{meant[best[place]]}"' if place in best else ""
    if values:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        ends = f" [{min(values):.{digits}f}, {max(values):.{digits}f}]" if table.minmax else ""
        out = (
            f'<span class="value"{title}>{number(statistics.mean(values), digits)}</span>'
            f'<span class="spread">{spread}{signed(ends)}</span>{sup}{told}'
        )
    else:
        out = f'<span class="none">{escape(cell.text(table.percent))}</span>{sup}'
    if theirs is not None and theirs.mean is not None:
        against = cell.against(theirs)
        difference = f" ({signed(f'{against.difference:+z.2f}')}, {against.verdict})" if against else ""
        out += f'<span class="paper">paper {escape(theirs.printed())}{difference}</span>'
    for what, those in (("failed", cell.failed), ("missing", cell.missing), ("without it", cell.lacking)):
        if those and (values or what == "failed"):
            out += f'<span class="flag">{what}: seed {", ".join(map(str, those))}</span>'
    for name, found in sorted(cell.origins.items()):
        if len(found) > 1:
            out += f'<span class="flag" title="{escape(", ".join(sorted(found)))}">mixed {name}</span>'
    return out


def _letter(k: int) -> str:
    """1 -> a, 26 -> z, 27 -> aa, as lists count: a number beside `n=3` would be an exponent."""
    first, last = divmod(k - 1, 26)
    return (_letter(first) if first else "") + chr(ord("a") + last)


def anchor_of(table: Table, place: Place) -> str:
    return f"runs-{table.rows.index(place[0]) + 1}-{table.columns.index(place[1]) + 1}"


def numbered(table: Table) -> dict[Place, list[int]]:
    """Cell -> the numbers of its notes; those of all cells need none."""
    out: dict[Place, list[int]] = {}
    for k, (_, _, at, places) in enumerate(table.footnotes() if table.paper is not None else [], start=1):
        for place in places if at else []:
            out.setdefault(place, []).append(k)
    return out
