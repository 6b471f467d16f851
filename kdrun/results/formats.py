"""Tables for a terminal (rich), and for other programs: LaTeX (booktabs), CSV, JSON."""

import csv
import io
import json
import re
import statistics
from typing import Any

from kdrun.results.cell import Cell, scaled
from kdrun.results.table import Table

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\^{}", "~": r"\~{}", "±": r"$\pm$", "→": r"$\to$", "|": r"$|$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def to_terminal(table: Table, width: int | None = None) -> str:
    """With rules, wrapped to the terminal; what is missing or failed stands out where it has colours.

    Args:
        width: characters of a line; None: the terminal's.
    """
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    header, *rows = table.grid()
    grid = Grid(title=table.title, title_justify="left", title_style="bold")
    for k, name in enumerate(header):
        grid.add_column(Text(name), justify="right" if k else "left", overflow="fold")
    for name, *texts in rows:
        grid.add_row(Text(name, "bold"), *(Text(text, _style(text)) for text in texts))
    console = Console(width=width)
    with console.capture() as shown:
        console.print(grid)
        for line in table.footer():
            console.print(
                Text(line, "yellow" if line.startswith(("warning", "failed", "missing", "damaged")) else "dim")
            )
    return shown.get().rstrip("\n")


def _style(text: str) -> str:
    if text.startswith("failed"):
        return "red"
    return "yellow" if text.startswith(("missing", "running", "stopped")) else ""


def latex_text(text: str) -> str:
    return re.sub("|".join(map(re.escape, LATEX)), lambda match: LATEX[match[0]], text)


def to_latex(table: Table) -> str:
    """A `tabular` for booktabs; what stands below the table becomes comments."""
    header, *rows = [[latex_text(text) for text in line] for line in table.grid()]
    lines = [" & ".join(line) + r" \\" for line in rows]
    comments = [f"% {line}" for line in (table.title, *table.footer())]
    columns = "l" + "r" * (len(header) - 1)
    body = [r"\toprule", " & ".join(header) + r" \\", r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([*comments, rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])


def cells_of(table: Table) -> list[dict[str, Any]]:
    """Each cell as plain values, in percent where the table shows percent."""
    out = []
    alone = {(row, column): Cell() for row in table.published for column in table.columns if table.theirs(row, column)}
    for (row, column), cell in (table.cells | alone).items():
        values = scaled(cell.values.values(), table.percent)
        theirs = table.theirs(row, column)
        against = None if theirs is None else cell.against(theirs)
        interval = None if against is None else against.interval
        out.append(
            {
                "row": row, "column": column, "metric": table.metric_of(row, column), "protocol": table.protocol,
                "percent": table.percent, "n": len(values), "planned": cell.planned,
                "mean": statistics.mean(values) if values else None,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values, default=None), "max": max(values, default=None),
                "missing": cell.missing, "failed": cell.failed, "lacking": cell.lacking,
                "paper_mean": theirs and theirs.mean, "paper_std": theirs and theirs.std,
                "paper_n": theirs and theirs.n, "published_only": row in table.published,
                "difference": against and against.difference, "low": interval and interval.low,
                "high": interval and interval.high, "verdict": against and against.verdict,
                "runs": dict(zip(cell.values, values, strict=True)),
            }
        )  # fmt: skip
    return out


def csv_cell(value: Any) -> Any:
    """A text that a spreadsheet would compute as a formula, with an apostrophe before it, which makes it a text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def to_csv(table: Table) -> str:
    """A line for each cell; lists are separated by spaces."""
    cells = cells_of(table)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(cells[0]) if cells else ["row"], lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        plain = {k: " ".join(map(str, v)) if isinstance(v, list | dict) else v for k, v in cell.items()}
        writer.writerow({name: csv_cell(value) for name, value in plain.items()})
    return file.getvalue().rstrip("\n")


def to_json(table: Table) -> str:
    claims = [
        {"name": v.claim.name, "verdict": v.verdict, "detail": v.detail, "tag": v.claim.tag} for v in table.claims
    ]
    told: dict[str, Any] = {
        "title": table.title,
        "metric": table.metric,
        "protocol": table.protocol,
        "rows": [*table.rows, *table.published],
    }
    told |= {"columns": table.columns, "cells": cells_of(table), "claims": claims, "footer": table.footer()}
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
