"""List all runs below outputs/, from their records alone, and the sweeps that are at work on them.

kdrun status
kdrun status dataset.name=digits loss.kd.temperature=4      any key of the configuration filters
kdrun status status=failed                                  with the end of what they said
kdrun status sort=seconds reverse=true limit=20 metric=test/ece outputs=outputs
status: done, running, stopped, failed; sort: path, seconds, metric, seed, status
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdrun.cli.views import headline, lines_of, paces_of
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.files import folder, regular
from kdrun.core.schema import Schema, from_arguments
from kdrun.results.filters import Filters
from kdrun.results.found import unique_records
from kdrun.runs.metric import Metric, is_percent
from kdrun.runs.pace import Pace, pace_of
from kdrun.runs.record import Record, state_of
from kdrun.training.standing import sweeps_below

SHOWN = 40  # lines of a sweep
TAIL = 3  # last lines of log.txt that are shown of a failed run
_Line = tuple[tuple[Any, ...], list[str], list[str]]
"""What a run is sorted by, its cells, and what is shown below it."""


class Options(Schema):
    """Whatever else is given filters by that key of the configuration."""

    outputs: str = "outputs"
    status: Literal["done", "running", "stopped", "failed"] | None = None
    metric: str = "test/top1"
    sort: Literal["path", "seconds", "metric", "seed", "status"] = "path"
    reverse: bool = False
    limit: int | None = Field(None, gt=0)


def main(arguments: Sequence[str]) -> str:
    """A line for each run that passes the filters.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    own = [a for a in arguments if a.partition("=")[0] in Options.model_fields or "=" not in a]
    options = from_arguments(Options, own)
    filters = Filters.of([a for a in arguments if a not in own])
    outputs = folder(options.outputs, "outputs")
    metrics: set[str] = set()
    lines: list[_Line] = []  # not their records: there may be many thousands
    told_of = False
    counts: dict[str, int] = {}
    records, notes = unique_records(outputs)
    for directory, record in records:
        if not filters.take(record):
            continue
        state = state_of(directory, record)
        counts[state] = counts.get(state, 0) + 1
        if options.status in (None, state):
            cells, tail = _line(directory, record, state, options, outputs)
            lines.append((_order(options, directory, record, state), cells, tail))
            metrics |= record["metrics"].keys()
            told_of = told_of or _has(record, options.metric)
    filters.refuse_unknown(also=Options.model_fields)
    if "metric" in options.model_fields_set and metrics and not told_of:
        raise ConfigError(f"metric: {options.metric}: no run here has it{allowed(options.metric, metrics)}")
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    total = f"{sum(counts.values())} runs in {outputs}{': ' + told if told else ''}"
    return "\n".join([*_sweeps(outputs), *_shown(lines, options), total, *notes])


def _sweeps(outputs: Path) -> list[str]:
    """How each sweep stands that goes on somewhere: what runs, how far it is, what went wrong."""
    lines = []
    for sweep in sweeps_below(outputs):
        paces = paces_of(sweep, outputs)
        lines.append(f"sweep on {sweep.host} (process {sweep.process}): {headline(sweep, paces)}")
        lines += [*(f"  {line}" for line in lines_of(sweep, paces, SHOWN)), ""]
    return lines


def _shown(lines: list[_Line], options: Options) -> list[str]:
    """A header, and a line for each run, what a failed one said below it."""
    lines.sort(key=lambda line: line[0], reverse=options.reverse)
    header = ["run", "status", options.metric, "seconds", "device"]
    shown = [(header, []), *((line, tail) for _, line, tail in lines[: options.limit])]
    widths = [max(len(line[i]) for line, _ in shown) for i in range(len(header))]
    out = []
    for line, tail in shown:
        out.append("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        out += [f"    {text}" for text in tail]
    return out


def _metric(record: Record, metric: str) -> float | None:
    metrics = record["metrics"]
    found = metrics.get(metric, metrics.get(Metric.parse(metric).key(record["headline"])))
    return None if found is None else float(found)


def _has(record: Record, metric: str) -> bool:
    """Also where it is null."""
    return not {metric, Metric.parse(metric).key(record["headline"])}.isdisjoint(record["metrics"])


def _order(options: Options, directory: Path, record: Record, state: str) -> tuple[Any, ...]:
    """What is not there comes last in rising order."""
    value = {
        "path": None, "status": state, "seed": record["seed"], "metric": _metric(record, options.metric),
        "seconds": (record.get("seconds") or {}).get("total"),
    }[options.sort]  # fmt: skip
    return (value is None, 0 if value is None else value, directory.parts)


def _line(directory: Path, record: Record, state: str, options: Options, outputs: Path) -> tuple[list[str], list[str]]:
    value, seconds = _metric(record, options.metric), (record.get("seconds") or {}).get("total")
    shown = "" if value is None else f"{100 * value:.2f}" if is_percent(options.metric) else f"{value:.4f}"
    took = "" if seconds is None else f"{seconds:.0f}"
    pace = pace_of(directory) if state == "running" else Pace()
    stands = state if pace.step is None else f"{state} {pace.step}/{pace.steps}"
    cells = [directory.relative_to(outputs / "runs").as_posix(), stands, shown, took, str(record.get("device") or "")]
    return cells, _tail(directory, record) if state == "failed" or record.get("error") else []


def _tail(directory: Path, record: Record) -> list[str]:
    """The error of a failed run, and the end of its log where that says more."""
    error = record.get("error") or {}
    first = f"{error.get('type', 'error')}: {error.get('message', '')}".strip()
    path = directory / "log.txt"
    try:
        with regular(path).open("rb") as file:
            file.seek(max(path.stat().st_size - 2000, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as problem:
        logging.getLogger(__name__).debug("%s: %s", path, problem)
        lines = []
    ends = [line.strip() for line in lines[-TAIL:] if line.strip() and error.get("message", "\0") not in line]
    return [" ".join(first.split()), *ends]
