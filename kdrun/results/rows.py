"""Rows of plain values into a file, one after the other: CSV, JSON lines or Parquet, as its ending says."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdrun.core.errors import ConfigError, allowed
from kdrun.core.parquet import pyarrow
from kdrun.results.formats import csv_cell

Row = Mapping[str, str | float | None]
Write = Callable[[Row], Any]
ASKED = "out: .parquet"
AT_ONCE = 10_000  # rows that a Parquet file takes together


def refuse_ending(path: Path, key: str) -> None:
    """Raises ConfigError for a name that does not say which format; DataError where what writes it is missing."""
    if path.suffix.lower() not in _FORMS:
        raise ConfigError(f"{key}: {path}: the ending tells the format{allowed(path.suffix, filter(None, _FORMS))}")
    if path.suffix.lower() == ".parquet":
        pyarrow(ASKED)


@contextmanager
def written_rows(path: Path, suffix: str, columns: Mapping[str, type]) -> Iterator[Write]:
    """What writes a row, which may lack columns. A file name that is no text is written with escapes, in CSV as it is.

    Args:
        path: what is written, whatever it is called.
        suffix: the ending that tells the format.
        columns: name -> str or float.
    """
    with _FORMS[suffix.lower()](path, columns) as write:
        yield write


@contextmanager
def _csv(path: Path, columns: Mapping[str, type]) -> Iterator[Write]:
    # a name that is no text goes out as the bytes that it is
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)

        def write(row: Row) -> None:
            values = (row.get(name) for name in columns)
            writer.writerow([f"{value:.6f}" if isinstance(value, float) else csv_cell(value) for value in values])

        yield write


@contextmanager
def _jsonl(path: Path, columns: Mapping[str, type]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:  # escapes that JSON reads back

        def write(row: Row) -> None:
            told = {name: row.get(name) for name in columns}
            file.write(json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n")

        yield write


@contextmanager
def _parquet(path: Path, columns: Mapping[str, type]) -> Iterator[Write]:
    arrow = pyarrow(ASKED)
    kinds = {str: arrow.string(), float: arrow.float64()}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    waiting: list[dict[str, Any]] = []
    with arrow.parquet.ParquetWriter(path, schema) as writer:

        def write(row: Row) -> None:
            waiting.append({name: _text(row.get(name)) for name in columns})
            if len(waiting) == AT_ONCE:
                flush()

        def flush() -> None:
            writer.write_table(arrow.Table.from_pylist(waiting, schema))
            waiting.clear()

        yield write
        flush()


def _text(value: str | float | None) -> str | float | None:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


_FORMS = {"": _csv, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
