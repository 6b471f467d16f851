"""A paper's own numbers as values that claims are judged by."""

from kdrun.results.claims import Values
from kdrun.results.papers import TEACHER, Paper, printed_name


def of_paper(paper: Paper) -> Values:
    """The paper's own numbers, against which its claims must hold."""

    def values(row: str, column: str, metric: str) -> list[float]:
        name = printed_name(metric)
        if name is None:
            return []
        cell = paper.cell(row, column, name)
        if cell is None and row.startswith(f"{TEACHER} of "):
            cell = paper.cell(TEACHER, column, name)
        return [] if cell is None or cell.mean is None else [cell.mean]

    return values
