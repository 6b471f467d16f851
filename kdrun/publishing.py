"""outputs/published/<table>: the records behind a table and its text, which can be made again without the runs."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from kdrun.errors import ConfigError, KdrunError, Unfinished
from kdrun.files import write_text
from kdrun.formats import to_json
from kdrun.planned import PlannedRun, plan_of, table_spec
from kdrun.record import SCHEMA, Record, finite
from kdrun.schema import Schema, from_arguments
from kdrun.tables import Reader, planned_table, reader

BEGIN, END = "<!-- tables -->", "<!-- /tables -->"
MACHINE = re.compile(r"(^|[\s=:\[,])(/(?!/)|~[/\w]|[A-Za-z]:\\|\\\\|file:/)")
"""What begins like an absolute path."""


class Options(Schema):
    """`table=<name> [metric=...] [check=true] [outputs=] [published=] [readme=]`."""

    table: str | None = None
    metric: list[str] = Field(default_factory=list)
    """A table of each; none: those that were published, else that of conf/table."""
    check: bool = False
    """Write nothing: make the texts again from the published records, and say where they differ."""
    outputs: str = "outputs"
    published: str = "outputs/published"
    readme: str = "README.md"


def main(arguments: Sequence[str]) -> str:
    """Raises Unfinished: with check=true, a text is not what its records make."""
    options = from_arguments(Options, arguments)
    folder = Path(options.published)
    if options.check:
        names = [options.table] if options.table else [p.parent.name for p in sorted(folder.glob("*/table.json"))]
        wrong = [line for name in names for line in _differences(name, folder / name, Path(options.readme), options)]
        if wrong:
            raise Unfinished("", *wrong)
        return f"as their records make them: {', '.join(names) or 'nothing is published with table.json'}"
    if options.table is None:
        raise ConfigError("table: missing; a value is required")
    outputs = Path(options.outputs)
    records = list(_behind(options.table, outputs))
    place = folder / options.table
    texts = _texts(options.table, outputs, options.metric or _published_metrics(place), reader(outputs))
    table_md = place / "table.md"
    told = f"{BEGIN}\n{texts[0]}\n{END}\n"
    if table_md.is_file():
        told = _replaced(table_md, BEGIN, END, texts[0])
    write_text(place / "records.jsonl", "".join(json.dumps(finite(r), ensure_ascii=False) + "\n" for r in records))
    write_text(table_md, told)
    write_text(place / "table.json", texts[1] + "\n")
    lines = [f"wrote {place}: {len(records)} records"]
    readme = Path(options.readme)
    begin, end = _marks(options.table)
    if readme.is_file() and begin in readme.read_text():
        write_text(readme, _replaced(readme, begin, end, texts[2]))
        lines.append(f"wrote the block of {readme}")
    return "\n".join(lines)


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- table {name} -->", f"<!-- /table {name} -->"


def _texts(name: str, outputs: Path, metrics: Sequence[str], read: Reader) -> tuple[str, str, str]:
    """table.md's generated part, table.json, README's block (the first metric's table)."""
    tables = [planned_table(name, outputs, metric, read=read) for metric in metrics or [table_spec(name).metric]]
    markdown = [table.to_markdown() for table in tables]
    whole = [json.loads(to_json(table)) for table in tables]
    return "\n\n".join(markdown), json.dumps(whole, indent=1, ensure_ascii=False), markdown[0]


def _published_metrics(place: Path) -> list[str]:
    try:
        return [str(table["metric"]) for table in json.loads((place / "table.json").read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise KdrunError(f"{place / 'table.json'}: not readable ({error}); delete it") from None


def _behind(name: str, outputs: Path) -> Iterator[Record]:
    """The record of each run of a table and of what they need, once.

    Raises:
        KdrunError: a run is not done, or its record holds a path of this machine.
    """
    read, seen = reader(outputs), set[str]()

    def each(run: PlannedRun) -> Iterator[Record]:
        for other in run.needs.values():
            yield from each(other)
        if run.place not in seen:
            seen.add(run.place)
            record = read(run.place)
            if record is not None and record["status"] != "running":
                for key, value in _paths(record):
                    raise KdrunError(
                        f"{outputs / run.place}: its record holds a path of this machine, {key}: {value}; "
                        "run it with a path that is relative to the working directory"
                    )
                yield record

    cells = plan_of(name, table_spec(name), outputs).cells
    found = [record for cell in cells for run in cell.runs for record in each(run)]
    if not any(record["status"] == "done" for record in found):
        raise KdrunError(f"table={name}: none of its runs is done in {outputs}")
    yield from found


def _paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _paths(item, f"{key}.{i}")
    elif isinstance(value, str) and MACHINE.search(value):
        yield key, value


def published_reader(name: str, place: Path, outputs: Path) -> Reader:
    """Records of records.jsonl, by the key in a run's directory name."""
    path = place / "records.jsonl"
    found: dict[str, Record] = {}
    try:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            record = json.loads(line)
            if not isinstance(record, dict) or record.get("schema") != SCHEMA or "key" not in record:
                raise ValueError(f"line {number} is no record of schema {SCHEMA}")
            found[record["key"]] = record
    except (OSError, ValueError) as error:
        raise KdrunError(f"{path}: not readable ({error})") from None
    return lambda run_place: found.get(run_place.rpartition("-")[2])


def _differences(name: str, place: Path, readme: Path, options: Options) -> list[str]:
    outputs = Path(options.outputs)
    metrics = options.metric or _published_metrics(place)
    texts = _texts(name, outputs, metrics, published_reader(name, place, outputs))
    wrong = []
    for path, (begin, end), text in (
        (place / "table.md", (BEGIN, END), texts[0]),
        (readme, _marks(name), texts[2]),
    ):
        old = path.read_text() if path.is_file() else ""
        if begin in old and _lines(_replaced(path, begin, end, text)) != _lines(old):
            wrong.append(path)
    path = place / "table.json"
    if not path.is_file() or path.read_text() != texts[1] + "\n":
        wrong.append(path)
    remedy = (
        f"is not what {place / 'records.jsonl'} makes; run scripts/publish.py table={name} and look at what changes"
    )
    return [f"{path}: table={name} {remedy}" for path in wrong]


def _lines(text: str) -> list[str]:
    """Without the spaces at the ends of lines, which editors take away."""
    return [line.rstrip() for line in text.splitlines()]


def _replaced(path: Path, begin: str, end: str, text: str) -> str:
    """The file with another text between its markers; what stands around them stays."""
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise KdrunError(f"{path}: has no {begin} ... {end}; put them around the part that is generated")
    return f"{before}{begin}\n{text}\n{end}{after}"
