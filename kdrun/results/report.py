"""A table as a report that one attaches to a paper: figures, the runs behind them, pictures, cost, differences."""

import logging
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.config.names import differing_keys
from kdrun.core.errors import KdrunError
from kdrun.core.later import later
from kdrun.core.quantities import duration
from kdrun.results.cell import Place, curve_of, run_name, scaled
from kdrun.results.found import distinguishing
from kdrun.results.page import grid, page, svg, wide
from kdrun.results.plots import curves, labels, seeds
from kdrun.results.plots.options import RunOptions
from kdrun.results.table import Table
from kdrun.runs.record import Record

if TYPE_CHECKING:
    from kdrun.results.plots import reliability
    from kdrun.results.plots.judged import Judged, judged
    from kdrun.runs.finished import FinishedRun
else:
    reliability = later("kdrun.results.plots.reliability")
    judged = later("kdrun.results.plots.judged", "judged")
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")

log = logging.getLogger(__name__)
MOST_DIAGRAMS = 12  # reliability diagrams
PANELS = 3  # columns beside each other in a picture of seeds
MINUS = "\N{MINUS SIGN}"


def html(table: Table, outputs: Path) -> str:
    """The report of a planned table."""
    sections = [
        ("Table", _main(table)),
        ("Notes", _notes(table)),
        ("Claims", _claims(table)),
        ("Against the paper", _paper(table)),
        ("Seeds", _seeds(table)),
        ("By number of labels", _labels(table)),
        ("Learning curves", _curves(table, outputs)),
        ("Reliability", _reliability(table, outputs)),
        ("Cost", _cost(table)),
        ("What differs between rows", _differences(table)),
        ("Environment", _environment(table)),
        ("Runs", _runs(table)),
    ]
    done = sum(len(cell.values) for cell in table.cells.values() if not cell.parts)
    planned = sum(cell.planned for cell in table.cells.values() if not cell.parts)
    lead = [table.about, f"{table.measure}. {done} of {planned} planned figures are there."]
    return page(f"{table.title}: {table.metric}", [line for line in lead if line], sections)


def _main(table: Table) -> str:
    header, *lines = table.grid()
    numbered = _numbered(table)
    rows = []
    for k, line in enumerate(lines):
        published = k >= len(table.rows)
        name = list(table.published)[k - len(table.rows)] if published else line[0]
        tag = " <small>(published only)</small>" if published else ""
        shown = [f'<th scope="row">{escape(name)}{tag}</th>']
        for i, text in enumerate(line[1:]):
            place = name, table.columns[i] if i < len(table.columns) else ""
            own = place in table.cells
            shown.append(f'<td class="n">{_figure(table, place, numbered) if own else escape(text)}</td>')
        kind = ' class="published"' if published else ""
        rows.append(f"<tr{kind}>{''.join(shown)}</tr>")
    head = "".join(f'<th scope="col"{" class=n" if i else ""}>{escape(text)}</th>' for i, text in enumerate(header))
    body = "\n".join(rows)
    return wide("the table", f'<table class="main"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>')


def _figure(table: Table, place: Place, numbered: Mapping[Place, Sequence[int]]) -> str:
    """`96.25 ± 1.32 n=3`, the paper's number below, what is wrong with it, the letters of its notes."""
    cell, theirs = table.cells[place], table.theirs(*place)
    digits = 2 if table.percent else 4
    values = scaled(cell.values.values(), table.percent)
    marks = ", ".join(f'<a href="#note-{k}">{_letter(k)}</a>' for k in numbered.get(place, ()))
    sup = f"<sup>{marks}</sup>" if marks else ""
    count = f"{len(values)}" + (f"/{cell.planned}" if cell.planned > len(values) else "")
    link = f'href="#{_anchor(table, place)}" title="the runs behind it"'
    told = f'<a class="count" {link}>n={count}</a>' if cell.runs else f'<span class="count">n={count}</span>'
    if values:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        ends = f" [{min(values):.{digits}f}, {max(values):.{digits}f}]" if table.minmax else ""
        out = (
            f'{_number(statistics.mean(values), digits)}<span class="spread">{spread}{_signed(ends)}</span>{sup}{told}'
        )
    else:
        out = f'<span class="none">{escape(cell.text(table.percent))}</span>{sup}'
    if theirs is not None and theirs.mean is not None:
        against = cell.against(theirs)
        difference = f" ({_signed(f'{against.difference:+z.2f}')}, {against.verdict})" if against else ""
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


def _number(value: float, digits: int) -> str:
    return _signed(f"{value:.{digits}f}")


def _signed(text: str) -> str:
    """With a minus sign as wide as a plus."""
    return text.replace("-", MINUS)


def _anchor(table: Table, place: Place) -> str:
    return f"runs-{table.rows.index(place[0]) + 1}-{table.columns.index(place[1]) + 1}"


def _numbered(table: Table) -> dict[Place, list[int]]:
    """Cell -> the numbers of its notes; those of all cells need none."""
    out: dict[Place, list[int]] = {}
    for k, (_, _, at, places) in enumerate(table.footnotes() if table.paper is not None else [], start=1):
        for place in places if at else []:
            out.setdefault(place, []).append(k)
    return out


def _notes(table: Table) -> str:
    """Deviations and what is ours, lettered as in the table; then what else stands below it."""
    items = []
    for k, (kind, text, at, _) in enumerate(table.footnotes() if table.paper is not None else [], start=1):
        told = f"{'Deviates' if kind == 'deviates' else 'Ours'}{f' ({at})' if at else ' (all cells)'}: {text}"
        items.append(f'<li id="note-{k}">{escape(told)}</li>')
    left_out = ("claim ", "paper: ", "deviates", "ours", table.measure)
    rest = [line for line in table.footer() if not line.startswith(left_out)]
    notes = f'<ol class="notes">{"".join(items)}</ol>' if items else ""
    return notes + "".join(f'<p class="note">{escape(line)}</p>' for line in rest)


def _claims(table: Table) -> str:
    kinds = {"holds": "good", "fails": "bad"}
    rows = [
        [
            escape(v.claim.name), f'<b class="{kinds.get(v.verdict, "none")}">{v.verdict}</b>',
            escape(_signed(v.detail)), v.claim.tag,
        ]
        for v in table.claims
    ]  # fmt: skip
    return grid("claims", ["claim", "verdict", "figures", "known from"], rows) if rows else ""


def _paper(table: Table) -> str:
    rows = []
    for row, column in table.cells:
        theirs, cell = table.theirs(row, column), table.cells[row, column]
        if theirs is None or theirs.mean is None:
            continue
        against = cell.against(theirs)
        values = scaled(cell.values.values(), table.percent)
        ours = _number(statistics.mean(values), 2) if values else ""
        ends = "" if against is None or against.interval is None else (
            f"{against.interval.low:+z.2f} to {against.interval.high:+z.2f}"
        )  # fmt: skip
        n = "" if theirs.n is None else f" (n={theirs.n})"
        difference = "" if against is None else f"{against.difference:+z.2f}"
        texts = (row, column, ours, f"{theirs.printed()}{n}", difference, ends, against.verdict if against else "")
        rows.append([escape(_signed(text) if i > 1 else text) for i, text in enumerate(texts)])
    if not rows or table.paper is None:
        return ""
    header = ["row", "column", "ours", escape(table.paper.source), "difference", "95 % (Welch)", "within the spread"]
    told = '<p class="note">n/a: the paper gives no standard deviation or no n, or one side has a single run.</p>'
    return grid("ours against the paper's", header, rows, (2, 3, 4, 5)) + told


def _seeds(table: Table) -> str:
    columns: dict[str, dict[str, seeds.Dots]] = {}
    for (row, column), cell in table.cells.items():
        theirs = table.theirs(row, column)
        if cell.values:
            dots = seeds.Dots(scaled(cell.values.values(), table.percent), None if theirs is None else theirs.mean)
            columns.setdefault(column, {})[row] = dots
    names, out = list(columns), []
    for k in range(0, len(names), PANELS):
        part = {name: columns[name] for name in names[k : k + PANELS]}
        title = f"{table.metric} of every seed: {'; '.join(part)}"
        out.append(svg(partial(seeds.draw, part, table.metric), title))
    return _figures(out)


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
            title = f"{dataset}: {table.metric}; mean, least and greatest over seeds"
            out.append(svg(partial(labels.draw, rows, table.metric), title))
    return _figures(out)


def _curves(table: Table, outputs: Path) -> str:
    out = []
    for column in table.own_columns:
        bands = {}
        for row in table.rows:
            cell = table.cell(row, column)
            found = [
                _quietly(curve_of, outputs / run.place, table.metric_of(row, column)) for run in cell.runs.values()
            ]
            logged = [curve for curve in found if curve]
            if logged:
                bands[row] = curves.band(logged, "range")
        if any(len(one.steps) > 1 for one in bands.values()):
            title = f"{column}: mean, least and greatest over seeds"
            out.append(svg(partial(curves.draw, bands, table.metric), title))
    return _figures(out)


def _reliability(table: Table, outputs: Path) -> str:
    """Of the first finished seed of each cell that has kept its predictions, two to a picture; each teacher once."""
    shown: dict[str, Judged] = {}
    teachers: list[Judged] = []
    more = False
    for row, column, networks in _with_predictions(table, outputs):
        if len(shown) >= MOST_DIAGRAMS:
            more = True
            break
        at = row if len(table.columns) == 1 else f"{row}, {column}"
        for name, judged in networks.items():
            if name != "teacher":
                shown[at] = judged
            elif not any(judged[0].equal(one[0]) and judged[1].equal(one[1]) for one in teachers):
                teachers.append(judged)
                shown[f"teacher of {at}"] = judged
    names, out = list(shown), []
    for k in range(0, len(names), 2):
        pair = {name: shown[name] for name in names[k : k + 2]}
        out.append(svg(partial(reliability.draw, pair), f"Reliability, first seed: {'; '.join(pair)}"))
    told = f"The first {MOST_DIAGRAMS} diagrams; kdrun plot reliability draws any run." if more else ""
    return _figures(out) + (f'<p class="note">{told}</p>' if told else "")


def _with_predictions(table: Table, outputs: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for (row, column), cell in table.cells.items():
        for seed, run in cell.runs.items():
            record = cell.records.get(seed)
            if record is None or record["status"] != "done":
                continue
            if (outputs / run.place / "predictions" / f"test-{record.get('headline')}.npz").is_file():
                opened = FinishedRun.open(outputs / run.place)
                networks = _quietly(judged, opened, RunOptions(run=str(opened.directory)))
                if networks:
                    yield row, column, networks
                    break


def _figures(drawn: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(drawn)}</div>' if len(drawn) > 1 else "".join(drawn)


def _quietly(read: Callable[..., Any], *arguments: Any) -> Any:
    """None for a run whose files cannot be read, or are not as they were written; which is said."""
    try:
        return read(*arguments)
    except KdrunError as error:
        log.warning("left out: %s", error)
        return None


def _cost(table: Table) -> str:
    rows: list[list[str]] = []
    sums: Counter[str] = Counter()
    for (row, column), cell in table.cells.items():
        done = [r for r in cell.records.values() if r["status"] == "done" and (r.get("seconds") or {}).get("total")]
        if done:
            spent: Counter[str] = Counter()
            for record in done:
                spent[_unit(record)] += record["seconds"]["total"] / 3600 * _devices(record)
            sums.update(spent)
            each = duration(statistics.mean(float(r["seconds"]["total"]) for r in done))
            devices = ", ".join(sorted({str(r.get("device")) for r in done}))
            texts = (row, column, f"{len(done)}", each, _hours(spent), devices)
            rows.append([escape(text) for text in texts])
    if not rows:
        return ""
    rows.append(["all", "", "", "", escape(_hours(sums)), ""])
    note = (
        "Wall-clock time of the runs themselves, on machines that may have done other work too; CPU-hours are times "
        "the threads of a run. Teachers and other runs that are needed first are not in it."
    )
    header = ["row", "column", "runs", "a run", "in all", "device"]
    return grid("cost of each cell", header, rows, (2, 3, 4)) + f'<p class="note">{note}</p>'


def _unit(record: Record) -> str:
    return "CPU-h" if record.get("device") == "cpu" else "GPU-h"


def _devices(record: Record) -> int:
    """Threads of a CPU, or accelerators, of all ranks."""
    threads = record.get("threads") if _unit(record) == "CPU-h" else None
    return int(threads or 1) * int(record.get("world_size") or 1)


def _hours(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{hours:.3g} {unit}" for unit, hours in sorted(spent.items()))


def _differences(table: Table) -> str:
    """The keys of the first column that not all rows have with the same value."""
    flats: dict[str, Mapping[str, Any]] = {}
    for (row, _), cell in table.cells.items():
        record = next((r for r in cell.records.values() if r.get("config")), None)
        if record is not None and row not in flats:
            flats[row] = distinguishing(record)
    keys = differing_keys(list(flats.values()))
    if not keys:
        return ""
    rows = [[f"<code>{escape(key)}</code>", *(_value(flat.get(key, "")) for flat in flats.values())] for key in keys]
    return grid("configuration keys that differ between rows", ["key", *map(escape, flats)], rows, kind="keys")


def _value(value: Any) -> str:
    return "" if value is None or value == "" else escape(str(value))


def _environment(table: Table) -> str:
    found: Counter[tuple[str, str]] = Counter()
    for cell in table.cells.values():
        for record in cell.records.values():
            code = record.get("code") or {}
            told = {name: record.get(name) for name in ("device", "precision", "threads", "backend", "batch_norm")}
            told |= {"world_size": record["world_size"]} if (record.get("world_size") or 1) > 1 else {}
            changed = " with changes" if code.get("dirty") else ""
            told |= {"code": f"{code.get('version')} {code.get('commit')}{changed}"}
            told |= record.get("packages") or {}
            found.update((name, str(value)) for name, value in told.items() if value is not None)
    rows = [[escape(name), escape(value), str(count)] for (name, value), count in sorted(found.items())]
    return grid("environment", ["what", "value", "runs"], rows, (2,)) if rows else ""


def _runs(table: Table) -> str:
    """The run behind each seed of each cell."""
    rows = []
    for place, cell in table.cells.items():
        for k, (seed, run) in enumerate(cell.runs.items()):
            record, value = cell.records.get(seed), cell.by_seed.get(seed)
            shown = "" if value is None else _number(scaled([value], table.percent)[0], 2 if table.percent else 4)
            why = "" if record is None else ((record.get("error") or {}).get("message") or "")
            code = ((record or {}).get("code") or {}).get("commit") or ""
            name = ", ".join(place)
            rows.append([
                escape(name) if k else f'<span id="{_anchor(table, place)}">{escape(name)}</span>', str(seed),
                escape("missing" if record is None else str(record["status"])), shown, escape(code[:7]),
                f"<code>{escape(run_name(Path(run.place)))}</code> {escape(why)}",
            ])  # fmt: skip
    if not rows:
        return ""
    note = '<p class="note">Directories below runs/ of the outputs folder; each name ends in the key of the run.</p>'
    return note + grid("runs", ["cell", "seed", "status", "value", "code", "run"], rows, (1, 3))
