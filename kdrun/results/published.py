"""What `kdrun publish` put into outputs/published/<table>, read again: its plan, its records, its learning curves."""

import json
import lzma
import os
from pathlib import Path

from pydantic import Field

from kdrun.core.errors import KdrunError
from kdrun.core.files import reason
from kdrun.core.schema import Schema, build
from kdrun.core.sums import unsealed
from kdrun.results.fill import CurveReader, Reader, curve_table, curves_of, table_of
from kdrun.results.plan import TablePlan
from kdrun.results.spec import TableConfig
from kdrun.results.table import Table
from kdrun.runs.record import SCHEMA, Record
from kdrun.runs.shape import fault

PLAN, PLAIN, PACKED = "published.json", "records.jsonl", "records.jsonl.xz"


class Shown(Schema):
    """One table of a folder."""

    metric: str
    curve: int | None = Field(None, gt=0)
    """Over training, at about so many steps."""
    columns: str = ""


class Published(Schema):
    """published.json: the plan (which run stands in which cell), what is shown, and the points of learning curves.

    From it and the records of records.jsonl (or records.jsonl.xz), table.json and the marked part of table.md are made.
    """

    override: list[str]
    spec: TableConfig
    """conf/table/<name>.yaml with `override` behind each column."""
    shows: list[Shown]
    curves: dict[str, dict[str, dict[str, float]]]
    """Metric -> run key -> step -> value."""
    plan: TablePlan

    @property
    def read_curve(self) -> CurveReader:
        """Of the points that were published."""

        def points(run_place: str, metric: str) -> dict[int, float]:
            found = self.curves.get(metric, {}).get(key_in(run_place), {})
            return {int(step): value for step, value in found.items()}

        return points


def is_published(place: Path) -> bool:
    return os.path.isfile(place / PLAN)  # false too for what is no name of a file


def read_published(place: Path) -> Published:
    """Raises KdrunError: there is no published.json, or it cannot be read."""
    path = place / PLAN
    try:
        return build(Published, json.loads(path.read_text("utf-8")), str(path))
    except FileNotFoundError:
        raise KdrunError(f"{path}: is not there; run kdrun publish table={place.name}") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise KdrunError(f"{path}: not readable ({reason(error)}); delete it and publish anew") from None


def published_reader(place: Path) -> Reader:
    """Records of records.jsonl, by the key in a run's directory name."""
    packed = (place / PACKED).is_file()
    path = place / (PACKED if packed else PLAIN)
    found: dict[str, Record] = {}
    try:
        text = lzma.decompress(path.read_bytes()) if packed else path.read_bytes()
        for number, line in enumerate(text.decode().splitlines(), start=1):
            record = unsealed(json.loads(line), "files")
            if record.get("schema") != SCHEMA:
                raise ValueError(f"line {number} is no record of schema {SCHEMA}")
            if (wrong := fault(record)) is not None:
                raise ValueError(f"line {number} is no whole record: {wrong}")
            found[record["key"]] = record
    except (OSError, ValueError, lzma.LZMAError, EOFError, RecursionError, MemoryError) as error:
        raise KdrunError(f"{path}: not readable ({reason(error)}); publish the table anew") from None
    return lambda run_place: found.get(key_in(run_place))


def key_in(place: str) -> str:
    """In the name of a run's directory."""
    return place.rpartition("-")[2]


def published_table(
    name: str, place: Path, told: Published, read: Reader, metric: str | None = None, curve: int | None = None,
    protocol: str | None = None,
) -> Table:  # fmt: skip
    """The table of a folder, from its records; with `curve` a metric over training, at about so many steps."""
    if curve is not None:
        asked = metric or told.spec.metric
        return curve_table(name, curves_of(name, told.spec, told.plan, told.read_curve, asked), asked, curve)
    return table_of(name, told.spec, told.plan, place, read, metric, protocol)
