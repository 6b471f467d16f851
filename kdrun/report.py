"""A table as one HTML file that opens from disk without a network: inline CSS, inline SVG, no scripts."""

import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from kdrun.cells import Cell, scaled
from kdrun.errors import KdrunError
from kdrun.formats import cells_of
from kdrun.found import differing_keys, distinguishing
from kdrun.record import Record
from kdrun.table import Table
from kdrun.todo import duration

MOST_DIAGRAMS = 12  # reliability diagrams
CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
thead th { border-bottom: 2px solid #1a1a1a; } td.none { color: #8a4b00; }
details summary { cursor: pointer; } details code { font-size: 12px; } small, .note { color: #555; }
svg { max-width: 100%; height: auto; } .holds { color: #00664a; } .fails { color: #b03a00; } figure { margin: 1rem 0; }
"""


def html(table: Table, outputs: Path) -> str:
    """The report of a planned table."""
    sections = [
        ("Table", _main(table)),
        ("Claims", _claims(table)),
        ("Against the paper", _paper(table)),
        ("By number of labels", _labels(table)),
        ("Learning curves", _curves(table, outputs)),
        ("Reliability", _reliability(table, outputs)),
        ("Cost", _cost(table)),
        ("What differs between rows", _differences(table)),
        ("Environment", _environment(table)),
    ]
    body = "\n".join(f"<h2>{escape(name)}</h2>\n{content}" for name, content in sections if content)
    title = escape(f"{table.title}: {table.metric}")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = f"<head>{head}<style>{CSS}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body>"
    return f'<!doctype html>\n<html lang="en">{page}</html>\n'


def _grid(header: list[str], rows: list[list[str]]) -> str:
    """Of texts that are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _main(table: Table) -> str:
    header, *lines = table.grid()
    rows = []
    for line in lines:
        shown = [escape(line[0])]
        for i, text in enumerate(line[1:]):
            cell = table.cells.get((line[0], table.columns[i])) if i < len(table.columns) else None
            shown.append(escape(text) + (_behind(table, cell) if cell is not None else ""))
        rows.append(shown)
    footer = [line for line in table.footer() if not line.startswith(("claim ", "paper: "))]
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in footer)
    return _grid([escape(text) for text in header], rows) + notes


def _behind(table: Table, cell: Cell) -> str:
    """The runs of a cell, folded away."""
    lines = []
    for seed, run in cell.runs.items():
        record = cell.records.get(seed)
        value = cell.by_seed.get(seed)
        shown = "" if value is None else f": {scaled([value], table.percent)[0]:.{2 if table.percent else 4}f}"
        status = "missing" if record is None else str(record["status"])
        why = "" if record is None else ((record.get("error") or {}).get("message") or "")
        lines.append(f"seed {seed}, {status}{shown}<br><code>{escape(run.place)}</code> {escape(why)}")
    return f"<details><summary><small>runs</small></summary>{'<br>'.join(lines)}</details>" if lines else ""


def _claims(table: Table) -> str:
    rows = [
        [f'<b class="{v.verdict.split()[0]}">{v.verdict}</b>', escape(v.claim.name), escape(v.detail), v.claim.tag]
        for v in table.claims
    ]
    return _grid(["", "claim", "figures", "known from"], rows) if rows else ""


def _paper(table: Table) -> str:
    rows = []
    for cell in cells_of(table):
        if cell["paper_mean"] is not None:
            spread = "" if cell["paper_std"] is None else f" ± {cell['paper_std']:.2f}"
            ours = "" if cell["mean"] is None else f"{cell['mean']:.2f}"
            difference = "" if cell["difference"] is None else f"{cell['difference']:+.2f}"
            ends = "" if cell["low"] is None else f"{cell['low']:+.2f} to {cell['high']:+.2f}"
            theirs = f"{cell['paper_mean']:.2f}{spread}"
            verdict = cell["verdict"] or ""
            texts = (cell["row"], cell["column"], ours, theirs, difference, ends, verdict)
            rows.append([escape(text) for text in texts])
    if not rows or table.paper is None:
        return ""
    header = ["row", "column", "ours", escape(table.paper.source), "difference", "95 % (Welch)", "within the spread"]
    return _grid(header, rows)


def svg(draw: Callable[[list[Path]], None], title: str) -> str:
    """What `draw` draws, as an element of a page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        draw([path])
        text = path.read_text()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    # matplotlib's glyphs and clips have the same ids in all pictures, not always the same content
    mark = f"f{zlib.crc32(f'{title}{text}'.encode()):08x}"
    text = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{mark}-", text)
    return f"<figure>{text}<figcaption>{escape(title)}</figcaption></figure>"


def _labels(table: Table) -> str:
    """Where columns of one dataset differ in the number of labels."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for (row, _), cell in table.cells.items():
        record = next(iter(cell.records.values()), None)
        if cell.values and record is not None and record.get("num_labels"):
            points = found.setdefault(str(record.get("dataset")), {}).setdefault(row, {})
            points.setdefault(record["num_labels"], []).extend(scaled(cell.values.values(), table.percent))
    out = []
    for dataset, rows in found.items():
        if len({count for points in rows.values() for count in points}) > 1:
            from kdrun.plots import labels

            title = f"{dataset}: {table.metric}; mean, least and greatest over seeds"
            out.append(svg(partial(labels.draw, rows, table.metric), title))
    return "".join(out)


def _curves(table: Table, outputs: Path) -> str:
    from kdrun.cells import curve_of
    from kdrun.plots import curves

    out = []
    for column in table.columns:
        bands = {}
        for row in table.rows:
            cell = table.cells.get((row, column), Cell())
            found = [_quietly(curve_of, outputs / run.place, table.metric) for run in cell.runs.values()]
            logged = [curve for curve in found if curve]
            if logged:
                bands[row] = curves.band(logged, "range")
        if bands:
            title = f"{column}: mean, least and greatest over seeds"
            out.append(svg(partial(curves.draw, bands, table.metric), title))
    return "".join(out)


def _reliability(table: Table, outputs: Path) -> str:
    """Of the first finished seed of each cell that has kept its predictions."""
    drawn: list[str] = []
    for row, column, place in _with_predictions(table, outputs):
        if len(drawn) == MOST_DIAGRAMS:
            drawn.append(f'<p class="note">The first {MOST_DIAGRAMS} cells; scripts/plot.py draws any run.</p>')
            break
        from kdrun.finished import FinishedRun
        from kdrun.plots import reliability
        from kdrun.plots.judged import RunOptions, judged

        run = FinishedRun.open(outputs / place)
        networks = _quietly(judged, run, RunOptions(run=str(run.directory)))
        if networks:
            title = f"{row}, {column}: {place}"
            drawn.append(svg(partial(reliability.draw, networks), title))
    return "".join(drawn)


def _with_predictions(table: Table, outputs: Path) -> Iterator[tuple[str, str, str]]:
    for (row, column), cell in table.cells.items():
        for seed, run in cell.runs.items():
            record = cell.records.get(seed)
            if record is None or record["status"] != "done":
                continue
            if (outputs / run.place / "predictions" / f"test-{record.get('headline')}.npz").is_file():
                yield row, column, run.place
                break


def _quietly(read: Callable[..., Any], *arguments: Any) -> Any:
    """None for a run whose files cannot be read: the table has said so already."""
    try:
        return read(*arguments)
    except KdrunError:
        return None


def _cost(table: Table) -> str:
    rows = []
    for (row, column), cell in table.cells.items():
        done = [r for r in cell.records.values() if r["status"] == "done" and (r.get("seconds") or {}).get("total")]
        if done:
            seconds = [float(r["seconds"]["total"]) for r in done]
            devices = sorted({str(r.get("device")) for r in done})
            total = sum(seconds) / 3600
            each = duration(sum(seconds) / len(seconds))
            rows.append([escape(t) for t in (row, column, f"{len(done)}", each, f"{total:.3f}", ", ".join(devices))])
    note = '<p class="note">Wall-clock time of the runs themselves, on machines that may have done other work too.</p>'
    return _grid(["row", "column", "runs", "a run", "hours in all", "device"], rows) + note if rows else ""


def _records(table: Table) -> dict[str, list[Record]]:
    """Row -> the first record of each of its cells."""
    out: dict[str, list[Record]] = {}
    for (row, _), cell in table.cells.items():
        record = next((r for r in cell.records.values() if r.get("config")), None)
        if record is not None:
            out.setdefault(row, []).append(record)
    return out


def _differences(table: Table) -> str:
    """The keys of the first column that not all rows have with the same value."""
    flats: dict[str, Mapping[str, Any]] = {}
    for row, records in _records(table).items():
        flats[row] = distinguishing(records[0])
    keys = differing_keys(list(flats.values()))
    if not keys:
        return ""
    rows = [[escape(key), *(escape(str(flat.get(key, ""))) for flat in flats.values())] for key in keys]
    return _grid(["key", *map(escape, flats)], rows)


def _environment(table: Table) -> str:
    found: Counter[tuple[str, str]] = Counter()
    for cell in table.cells.values():
        for record in cell.records.values():
            code = record.get("code") or {}
            told = {name: record.get(name) for name in ("device", "precision", "threads")}
            changed = " with changes" if code.get("dirty") else ""
            told |= {"code": f"{code.get('version')} {code.get('commit')}{changed}"}
            told |= record.get("packages") or {}
            found.update((name, str(value)) for name, value in told.items() if value is not None)
    rows = [[escape(name), escape(value), str(count)] for (name, value), count in sorted(found.items())]
    return _grid(["", "", "runs"], rows) if rows else ""
