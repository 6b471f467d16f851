"""List all runs below outputs/, from their records alone.

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

from kdrun.core.errors import ConfigError, allowed
from kdrun.core.lock import held
from kdrun.core.schema import Schema, from_arguments
from kdrun.results.found import flatten, unique_records
from kdrun.runs.layout import lock_path
from kdrun.runs.metric import Metric, is_percent
from kdrun.runs.record import Record

TAIL = 3  # last lines of log.txt that are shown of a failed run


class Options(Schema):
    """Whatever else is given filters by that key of the configuration."""

    outputs: str = "outputs"
    status: Literal["done", "running", "stopped", "failed"] | None = None
    metric: str = "test/top1"
    sort: Literal["path", "seconds", "metric", "seed", "status"] = "path"
    reverse: bool = False
    limit: int | None = None


def main(arguments: Sequence[str]) -> str:
    """A line for each run that passes the filters.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    own = [a for a in arguments if a.partition("=")[0] in Options.model_fields or "=" not in a]
    options = from_arguments(Options, own)
    filters = dict(a.split("=", 1) for a in arguments if a not in own)
    outputs = Path(options.outputs)
    known: set[str] = set()
    lines: list[tuple[Any, list[str], list[str]]] = []
    counts: dict[str, int] = {}
    records, notes = unique_records(outputs)
    for directory, record in records:
        if filters:
            flat = flatten(record["config"])
            known |= flat.keys()
            if not all(_is(flat.get(key), value) for key, value in filters.items()):
                continue
        state = _state(directory, record)
        counts[state] = counts.get(state, 0) + 1
        if options.status in (None, state):
            order = _order(options, directory, record, state)
            lines.append((order, *_line(directory, record, state, options, outputs)))
    for key in filters:
        if known and key not in known:
            raise ConfigError(f"{key}: no run has this key; {allowed(key, (*known, *Options.model_fields))}")
    lines.sort(key=lambda line: line[0], reverse=options.reverse)
    shown = lines if options.limit is None else lines[: options.limit]
    header = ["run", "status", options.metric, "seconds", "device"]
    grid = [header, *(line for _, line, _ in shown)]
    widths = [max(len(line[i]) for line in grid) for i in range(len(header))]
    out = []
    for line, tail in [(header, []), *((line, tail) for _, line, tail in shown)]:
        out.append("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        out += [f"    {text}" for text in tail]
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    out.append(f"{sum(counts.values())} runs in {outputs}{': ' + told if told else ''}")
    return "\n".join([*out, *notes])


def _is(value: Any, given: str) -> bool:
    """`null`, `true` and numbers as YAML has them."""
    import yaml

    return str(value) == given or value == yaml.safe_load(given)


def _state(directory: Path, record: Record) -> str:
    if record["status"] == "running" and not held(lock_path(directory)):
        return "stopped"
    return str(record["status"])


def _metric(record: Record, metric: str) -> float | None:
    metrics = record["metrics"] or {}
    found = metrics.get(metric, metrics.get(Metric.parse(metric).key(record.get("headline"))))
    return None if found is None else float(found)


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
    cells = [directory.relative_to(outputs / "runs").as_posix(), state, shown, took, str(record.get("device") or "")]
    return cells, _tail(directory, record) if state == "failed" else []


def _tail(directory: Path, record: Record) -> list[str]:
    """The error of a failed run, and the end of its log where that says more."""
    error = record.get("error") or {}
    first = f"{error.get('type', 'error')}: {error.get('message', '')}".strip()
    path = directory / "log.txt"
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 2000, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as problem:
        logging.getLogger(__name__).debug("%s: %s", path, problem)
        lines = []
    ends = [line.strip() for line in lines[-TAIL:] if line.strip() and error.get("message", "\0") not in line]
    return [" ".join(first.split()), *ends]
