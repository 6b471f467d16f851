"""What one cell of a table holds: a figure of each seed's record, what is missing, and where the runs were made."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.core.errors import KdrunError, allowed
from kdrun.results.intervals import Interval, welch
from kdrun.results.papers import PaperCell
from kdrun.results.plan import PlannedRun
from kdrun.runs.metric import Metric
from kdrun.runs.metrics_log import logged
from kdrun.runs.record import Record, read_record, state_of

EVALUATED = ("val", "test", "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
"""Splits whose figures every method has."""
LONGEST = 160  # characters of an error below a table
MEDIAN_OF = 20  # evaluations, FixMatch's protocol (Sohn et al. 2020, arXiv 2001.07685)


@dataclass
class Cell:
    """The values of one cell over its seeds."""

    values: dict[str, float] = field(default_factory=dict)
    """Run key -> value."""
    missing: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    states: dict[int, str] = field(default_factory=dict)
    """Seed that is missing or failed -> stopped, running; or the error."""
    without: list[str] = field(default_factory=list)
    """Why finished runs have no such figure."""
    lacking: list[int] = field(default_factory=list)
    """Seeds of those of them that should have it: an older record, say."""
    teachers: dict[str, float] = field(default_factory=dict)
    """Directory -> the same metric of the teachers behind this cell."""
    seeds: dict[str, int] = field(default_factory=dict)
    """Run key -> seed."""
    damaged: list[str] = field(default_factory=list)
    """What is wrong with records that cannot be read; their seeds are among the missing."""
    origins: dict[str, set[str]] = field(default_factory=dict)
    """device, precision, threads, code, world size, batch norm -> what finished runs say."""
    records: dict[int, Record] = field(default_factory=dict)
    """Seed -> record, of planned tables."""
    runs: dict[int, PlannedRun] = field(default_factory=dict)
    """Seed -> planned run, of planned tables."""
    deviations: list[str] = field(default_factory=list)
    """What differs from the paper, by the YAML files that the cell picks."""
    ours: list[str] = field(default_factory=list)
    """What is no paper's, by these files."""
    parts: list[str] = field(default_factory=list)
    """Columns that this one averages; none: it has runs of its own."""
    lacks: str = ""
    """Why it has no runs: a file that is not there."""
    gaps: dict[int, list[str]] = field(default_factory=dict)
    """Seed -> the parts that have no figure of it."""

    def add(self, seed: int, record: Record | None, metric: str, protocol: str, directory: Path | None = None) -> None:
        """Take in one seed's record; None: there is none."""
        if record is not None and record["status"] == "failed":
            self.failed.append(seed)
            self.states[seed] = brief((record.get("error") or {}).get("message") or "")
        elif record is None or record["status"] != "done":
            self.missing.append(seed)
            if record is not None and directory is not None:
                self.states[seed] = state_of(directory, record)
        else:
            for name, value in origin(record).items():
                self.origins.setdefault(name, set()).add(value)
            try:
                self.values[record["key"]] = value_of(record, metric, protocol, directory)
                self.seeds[record["key"]] = seed
            except KdrunError as error:
                self.without.append(str(error))
                if Metric.parse(metric).split in EVALUATED:  # else it is a figure that only some methods have
                    self.lacking.append(seed)

    @classmethod
    def mean_of(cls, parts: Mapping[str, "Cell"]) -> "Cell":
        """The mean over columns, seed by seed. A seed that one of them lacks has none."""
        cell = cls(parts=list(parts))
        for seed in sorted({seed for part in parts.values() for seed in (*part.runs, *part.seeds.values())}):
            figures = {name: part.by_seed.get(seed) for name, part in parts.items()}
            known = [value for value in figures.values() if value is not None]
            if len(known) == len(parts):
                cell.values[f"seed {seed}"], cell.seeds[f"seed {seed}"] = statistics.mean(known), seed
            else:
                cell.missing.append(seed)
                cell.gaps[seed] = [name for name, value in figures.items() if value is None]
        for part in parts.values():
            for name, found in part.origins.items():
                cell.origins.setdefault(name, set()).update(found)
        return cell

    @property
    def planned(self) -> int:
        """Seeds."""
        return len(self.values) + len(self.missing) + len(self.failed) + len(self.lacking)

    @property
    def by_seed(self) -> dict[int, float]:
        return {self.seeds[key]: value for key, value in self.values.items() if key in self.seeds}

    @property
    def unfinished(self) -> str:
        """What seeds without a record are, `missing`; where all have one what they are."""
        return " or ".join(sorted({self.states.get(seed, "missing") for seed in self.missing}))

    def minus(self, other: "Cell") -> list[float]:
        """This value minus the other's for each seed that both have, in order."""
        ours, theirs = self.by_seed, other.by_seed
        return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]

    def text(self, percent: bool, minmax: bool = False) -> str:
        """`91.67 ± 1.38 (n=3/3)`, standard deviation with ddof 1; what is missing is said, not averaged away."""
        if not self.values:
            state = "failed" if self.failed else self.unfinished if self.missing else "n/a"
            return f"{state} (0/{self.planned})" if self.planned else "not planned" if self.lacks else ""
        values = scaled(self.values.values(), percent)
        digits = 2 if percent else 4
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        ends = f" [{min(values):.{digits}f}, {max(values):.{digits}f}]" if minmax else ""
        count = f"n={len(values)}" + (f"/{self.planned}" if self.planned > len(values) else "")
        return f"{statistics.mean(values):.{digits}f}{spread}{ends} ({count})"

    def against(self, theirs: PaperCell) -> "Against | None":
        """The mean beside the paper's, both in percent; None: one of them is not there."""
        if theirs.mean is None or not self.values:
            return None
        ours = scaled(self.values.values(), True)
        mean, std = statistics.mean(ours), statistics.stdev(ours) if len(ours) > 1 else None
        known = std is not None and theirs.std is not None and theirs.n is not None
        interval = welch(mean, std or 0.0, len(ours), theirs.mean, theirs.std or 0.0, theirs.n or 0) if known else None
        return Against(mean - theirs.mean, interval)


@dataclass(frozen=True)
class Against:
    """Ours minus the paper's, in percent."""

    difference: float
    interval: Interval | None
    """Welch's; None where one side has no spread or no n."""

    @property
    def verdict(self) -> str:
        if self.interval is None:
            return "n/a"
        return "within" if self.interval.holds_zero else "outside"

    def text(self) -> str:
        """`-0.23 (-0.61 to 0.15), within`."""
        ends = "" if self.interval is None else f" ({self.interval.low:+z.2f} to {self.interval.high:+z.2f})"
        return f"{self.difference:+z.2f}{ends}, {self.verdict}"


def scaled(values: Iterable[float], percent: bool) -> list[float]:
    return [100 * value if percent else value for value in values]


def origin(record: Record) -> dict[str, str]:
    """device, precision, threads, code version, ranks and their batch normalisation, as far as its record tells."""
    code = record.get("code") or {}
    commit = code.get("commit")
    version = (commit[:7] if commit else str(code.get("version"))) + (" with changes" if code.get("dirty") else "")
    told = {
        "device": record.get("device"), "precision": record.get("precision"), "threads": record.get("threads"),
        "code": version if code else None, "world size": record.get("world_size"),
        "batch norm": record.get("batch_norm"),
    }  # fmt: skip
    return {name: str(value) for name, value in told.items() if value is not None}


def value_of(record: Record, metric: str, protocol: str = "last", directory: Path | None = None) -> float:
    """The metric of a done record, or a figure of one of its artifacts (`trusted_label/precision`).

    Args:
        protocol: last, best_on_val, or median20: the median of the last 20 evaluations of metrics.jsonl.
        directory: of the run; median20 needs it.

    Raises:
        KdrunError: the record does not have it.
    """
    asked = Metric.parse(metric)
    artifact = (record.get("artifacts") or {}).get(asked.split) or {}
    figure = artifact.get(asked.name) if isinstance(artifact, dict) and asked.net is None else None
    if isinstance(figure, int | float):
        return float(figure)
    key = asked.key(record["headline"])
    if protocol == "median20":
        return _median(record, key, directory)
    best = (record.get("best_on_val") or {}).get("metrics") or {}
    metrics = (record.get("metrics") or {}) if protocol == "last" else best
    value = metrics.get(key)
    if value is None:
        raise KdrunError(f"run {record['key']} has no {key} ({protocol}){allowed(key, metrics)}")
    return float(value)


def _median(record: Record, key: str, directory: Path | None) -> float:
    lines = [] if directory is None else logged(directory, record)
    values = [line[key] for line in lines if _is_figure(line.get(key))][-MEDIAN_OF:]
    if not values:
        where = "its metrics.jsonl is not at hand" if not lines else "its metrics.jsonl has none"
        raise KdrunError(f"run {record['key']} has no {key} (median20): {where}")
    return float(statistics.median(values))


def curve_of(directory: Path, metric: str) -> dict[int, float]:
    """Step -> value, of what the run has logged."""
    record = read_record(directory)
    if record is None:
        return {}
    keys = (metric, Metric.parse(metric).key(record.get("headline")))  # some keys, such as train/loss, name no network
    lines = logged(directory, record)
    return {line["step"]: line[key] for line in lines for key in keys if _is_figure(line.get(key))}


def logged_names(directory: Path) -> list[str]:
    """What `curve_of` may be asked for."""
    record = read_record(directory)
    lines = [] if record is None else logged(directory, record)
    return sorted({key for line in lines for key, value in line.items() if key != "step" and _is_figure(value)})


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def teacher_value(record: Record, metric: str) -> float | None:
    """The same metric of the teacher, as a student's record holds it."""
    value: float | None = (record.get("metrics") or {}).get(str(Metric.parse(metric).of("teacher")))
    return value


def given_teacher(record: Record, metric: str) -> dict[str, float]:
    """Name -> `teacher_value`."""
    value = teacher_value(record, metric)
    if value is None:
        return {}
    teacher = (record.get("config") or {}).get("teacher") or {}
    named = Path(str(teacher.get("path") or teacher.get("source", "ensemble"))).name
    model = teacher["model"].get("name", named) if isinstance(teacher.get("model"), dict) else named
    temperature = teacher.get("temperature", 1)
    at = f" at T = {temperature:g}" if isinstance(temperature, int | float) and temperature != 1 else ""
    whose = teacher.get("origin") or (record.get("requires") or {}).get("teacher", teacher.get("source"))
    return {f"{model}{at} ({whose})": value}


def run_name(directory: Path) -> str:
    """`supervised/digits/nall/s0-...`."""
    return "/".join(directory.parts[-4:])


def brief(message: str) -> str:
    """The first line of an error, shortened."""
    first = message.strip().partition("\n")[0]
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}…"


Place = tuple[str, str]  # row, column


def groups_of(notes: Mapping[Place, Sequence[str]]) -> dict[str, list[Place]]:
    """Each note once, with the cells that have it."""
    out: dict[str, list[Place]] = {}
    for place, lines in notes.items():
        for line in lines:
            out.setdefault(line, []).append(place)
    return out


def where(places: Sequence[Place], rows: Sequence[str], columns: Sequence[str]) -> str:
    """`r56-r20, r110-r20` for whole columns, `KD; TTM` for whole rows, nothing for all cells."""
    mine = set(places)
    used_rows = [row for row in rows if any((row, column) in mine for column in columns)]
    used_columns = [column for column in columns if any((row, column) in mine for row in rows)]
    if len(mine) != len(used_rows) * len(used_columns):
        return "; ".join(f"{row}, {column}" for row, column in places)
    parts = [used_rows if len(used_rows) < len(rows) else [], used_columns if len(used_columns) < len(columns) else []]
    return ", ".join("; ".join(names) for names in parts if names)
