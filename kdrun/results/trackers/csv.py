"""The curves as one table: metrics.csv in the run directory, a row for each step, a column for each value."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from kdrun.core.files import write_bytes
from kdrun.core.registry import register
from kdrun.training.tracking import Tracked, Tracker


@register("tracker", "csv")
class Csv(Tracker):
    """Written anew where a run goes on. It is written whole where a value comes for the first time; else it grows."""

    def __init__(self, config: Any, run: Tracked) -> None:
        super().__init__(config, run)
        self._path = run.directory / "metrics.csv"
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []

    def start(self) -> None:
        self._write()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        row = {"step": step, **values}
        self._rows.append(row)
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._write()
        else:
            with self._path.open("a", newline="") as file:
                file.write(self._text([row]))

    def _write(self) -> None:
        header = dict(zip(self._columns, self._columns, strict=True))
        write_bytes(self._path, self._text([header, *self._rows]).encode())

    def _text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        out = io.StringIO(newline="")
        csv.DictWriter(out, self._columns, restval="", lineterminator="\n").writerows(rows)
        return out.getvalue()
