"""What stands behind a table: cost, what differs between rows, where runs were made, and each of them."""

import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdrun.config.names import differing_keys
from kdrun.core.quantities import duration
from kdrun.results.cell import Cell, run_name, scaled
from kdrun.results.found import distinguishing
from kdrun.results.report.front import anchor_of
from kdrun.results.report.page import Text, grid, marked, number
from kdrun.results.table import Table
from kdrun.runs.record import Record

COMMIT = 10  # letters of a commit that are shown


def of_cost(table: Table) -> str:
    rows: list[list[Text]] = []
    sums: Counter[str] = Counter()
    for (row, column), cell in table.cells.items():
        done = [r for r in cell.records.values() if r["status"] == "done" and (r.get("seconds") or {}).get("total")]
        if done:
            spent: Counter[str] = Counter()
            for record in done:
                spent[_unit(record)] += record["seconds"]["total"] / 3600 * _devices(record)
            sums.update(spent)
            mean = statistics.mean(float(r["seconds"]["total"]) for r in done)
            each = duration(mean)
            devices = ", ".join(sorted({str(r.get("device")) for r in done}))
            rows.append([
                escape(row), escape(column), f"{len(done)}", (each, mean), (_hours(spent), spent.total()),
                escape(devices),
            ])  # fmt: skip
    if not rows:
        return ""
    note = (
        f"In all {_hours(sums)}. Wall-clock time of the runs themselves, on machines that may have done other work "
        "too; CPU-hours are times the threads of a run. Teachers and other runs that are needed first are not in it."
    )
    header = ["row", "column", "runs", "a run", "in all", "device"]
    return grid("cost of each cell", header, rows, (2, 3, 4), "cost") + f'<p class="note">{note}</p>'


def _unit(record: Record) -> str:
    return "CPU-h" if record.get("device") == "cpu" else "GPU-h"


def _devices(record: Record) -> int:
    """Threads of a CPU, or accelerators, of all ranks."""
    threads = record.get("threads") if _unit(record) == "CPU-h" else None
    return int(threads or 1) * int(record.get("world_size") or 1)


def _hours(spent: Mapping[str, float]) -> str:
    """`2.4 CPU-h`; less than an hour in minutes, which nobody wants to the second."""
    out = []
    for unit, hours in sorted(spent.items()):
        minutes = 60 * hours
        if minutes < 1:
            out.append(f"< 1 {unit.replace('-h', '-min')}")
        elif minutes < 59.5:
            out.append(f"{minutes:.0f} {unit.replace('-h', '-min')}")
        else:
            out.append(f"{hours:,.{0 if hours >= 99.5 else 1}f} {unit}")
    return ", ".join(out)


def of_differences(table: Table) -> str:
    """The keys of the first column that not all rows have with the same value, the teacher's last."""
    flats: dict[str, Mapping[str, Any]] = {}
    for (row, _), cell in table.cells.items():
        record = next((r for r in cell.records.values() if r.get("config")), None)
        if record is not None and row not in flats:
            flats[row] = distinguishing(record)
    keys = _telling(list(flats.values()))
    if not keys:
        return ""
    rows: list[list[Text]] = [
        [f"<code>{escape(key)}</code>", *(_value(flat.get(key, "")) for flat in flats.values())] for key in keys
    ]
    return grid("configuration keys that differ between rows", ["key", *map(escape, flats)], rows, kind="keys")


def _telling(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Without what follows from a teacher being there or not, and from the row's own key of the same name."""
    keys = differing_keys(flats)
    own = [key for key in keys if not key.startswith("teacher.")]
    first = [key for key in keys if key in ("teacher.source", "teacher.model.name")]
    rest = [key for key in keys if key not in own and key not in first]

    def matters(key: str) -> bool:
        having = [flat for flat in flats if key in flat]
        follows = all(flat[key] == flat.get(key.removeprefix("teacher."), ...) for flat in having)
        return bool(differing_keys([{key: flat[key]} for flat in having])) and not follows

    return [*own, *first, *filter(matters, rest)]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None or value == "" else escape(str(value))


def of_environment(table: Table) -> str:
    found: Counter[tuple[str, str]] = Counter()
    for cell in table.cells.values():
        for record in cell.records.values():
            code = record.get("code") or {}
            told = {name: record.get(name) for name in ("device", "precision", "threads", "backend", "batch_norm")}
            told |= {"world_size": record["world_size"]} if (record.get("world_size") or 1) > 1 else {}
            told |= {"code": " ".join(filter(None, [code.get("version"), _commit(code)]))}
            told |= record.get("packages") or {}
            found.update((name, str(value)) for name, value in told.items() if value is not None)
    rows: list[list[Text]] = [
        [escape(name), escape(value), str(count)] for (name, value), count in sorted(found.items())
    ]
    return grid("environment", ["what", "value", "runs"], rows, (2,), "environment") if rows else ""


def _state(cell: Cell, seed: int, record: Record | None) -> str:
    if record is None:
        return "missing"
    return cell.states.get(seed, "running") if record["status"] == "running" else str(record["status"])


def _commit(code: Mapping[str, Any]) -> str:
    """Of a work tree; an installed package has none."""
    changed = " with changes" if code.get("dirty") else ""
    return f"{code['commit'][:COMMIT]}{changed}" if code.get("commit") else ""


def of_runs(table: Table, outputs: Path, page: Path | None) -> str:
    """The run behind each seed of each cell, with a link to its folder.

    Args:
        page: the file that the links are relative to; None: it does not lie where the runs do, and names are text.
    """
    rows: list[list[Text]] = []
    for place, cell in table.cells.items():
        for k, (seed, run) in enumerate(cell.runs.items()):
            record, value = cell.records.get(seed), cell.by_seed.get(seed)
            shown = "" if value is None else number(scaled([value], table.percent)[0], 2 if table.percent else 4)
            why = "" if record is None else ((record.get("error") or {}).get("message") or "")
            code = (record or {}).get("code") or {}
            name = escape(", ".join(place))
            rows.append([
                name if k else f'<span id="{anchor_of(table, place)}">{name}</span>', str(seed),
                escape(_state(cell, seed, record)), (shown, value),
                f"<code>{escape(_commit(code) or code.get('version') or '')}</code>",
                f"{_folder(outputs, run.place, page)} {marked(why)}".strip(),
            ])  # fmt: skip
    if not rows:
        return ""
    note = '<p class="note">Folders below runs/ of the outputs folder; each name ends in the key of the run.</p>'
    return note + grid("runs", ["cell", "seed", "status", "value", "code", "run"], rows, (1, 3), "runs")


def _folder(outputs: Path, place: str, page: Path | None) -> str:
    name = f"<code>{escape(run_name(Path(place)))}</code>"
    if page is None or not (outputs / place).is_dir():
        return name
    link = quote(Path(os.path.relpath(outputs / place, page.parent)).as_posix())
    return f'<a href="{escape(link)}/">{name}</a>'
