"""Published numbers, as conf/paper/<name>.yaml holds them, printed beside ours, never mixed with them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kdrun.config import read_conf
from kdrun.schema import Schema

TEACHER = "Teacher"
"""The row of the teachers' own accuracy."""


class PaperCell(Schema):
    """One printed number."""

    table: str
    row: str
    column: str
    metric: Literal["top1", "ece", "confidence", "confidence_gap"] = "top1"
    """By our name for it."""
    mean: float | None
    """null: the paper prints n/a."""
    std: float | None = Field(None, ge=0)
    n: int | None = Field(None, gt=0)
    """Runs behind the mean; null: not stated."""
    protocol: Literal["last", "best", "median of the last 20 checkpoints", "unknown"]
    """Which evaluation counts; best: the best epoch on the test images."""
    tag: Literal["paper", "digest", "code"]
    """digest: known second hand; code: from files beside the authors' code."""


class Paper(Schema):
    """conf/paper/<name>.yaml."""

    source: str
    unit: Literal["percent"]
    cells: list[PaperCell] = Field(min_length=1)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        seen = set()
        for cell in self.cells:
            place = (cell.table, cell.row, cell.column, *([cell.metric] if cell.metric != "top1" else []))
            if place in seen:
                raise ValueError(f"cells: {', '.join(place)} is there twice")
            seen.add(place)
            if cell.mean is None and (cell.std, cell.n) != (None, None):
                raise ValueError(f"cells: {', '.join(place)} has no mean, but std or n")
        return self

    def teacher(self, column: str) -> float | None:
        """The accuracy of the teacher behind a column, in percent."""
        cells = (cell for cell in self.cells if cell.metric == "top1")
        return next((cell.mean for cell in cells if (cell.row, cell.column) == (TEACHER, column)), None)


def read_paper(name: str) -> Paper:
    """The numbers of one paper. Raises ConfigError when there is no such file, or one line for each mistake in it."""
    return read_conf("paper", name, Paper)
