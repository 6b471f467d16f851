"""What mirrors a run elsewhere: trackers, and the one thought that all of them share.

metrics.jsonl is the truth. A step is told once, whole, when the next one comes; where a run goes on, a tracker is told
first what metrics.jsonl has and it has not. So after a kill no step is doubled or lost, and training depends on none of
them: what one does wrong is said in one line.
"""

import contextlib
import importlib.util
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from kdrun.config.job import Job
from kdrun.config.names import group_name, short_names
from kdrun.config.parts import TrackerConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.runs.metric import Metric
from kdrun.runs.metrics_log import MetricsLog
from kdrun.runs.record import Record, finite
from kdrun.runs.whole import METRICS

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tracked:
    """A run as every tracker shows it.

    Args:
        role: `train`, or what the run that needs it calls it (teacher).
    """

    job: Job
    role: str = "train"

    @property
    def config(self) -> RunConfig:
        return self.job.config

    @property
    def key(self) -> str:
        """The run key, by which a run that goes on is found again."""
        return self.job.key

    @property
    def directory(self) -> Path:
        return self.job.directory

    @cached_property
    def name(self) -> str:
        """As sweeps call it: `kd-resnet8-cifar10-10000 s0`."""
        return short_names([self.config], [self.role])[0]

    @cached_property
    def group(self) -> str:
        """`kd-resnet8-cifar10-10000-3fa2c1`, which it shares with its other seeds alone."""
        return group_name(self.config)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of a run.

    Args:
        record: with `metrics`, of all networks and the teacher; a run that failed may have none.
        step: the last one.
        told: the values of that step that trackers were told.
        class_names: of the dataset.
    """

    record: Record
    directory: Path
    failed: bool
    step: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, Any]:
        """`split/net/metric` -> number; None where it is not finite."""
        found: dict[str, Any] = finite(self.record["metrics"])
        return found

    @property
    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The final figures: the columns, and a row for each split and network."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for key, value in self.metrics.items():
            metric = Metric.parse(key)
            if metric.net is not None:
                rows.setdefault((metric.split, metric.net), {})[metric.name] = value
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        return ["split", "network", *names], [[*place, *map(row.get, names)] for place, row in rows.items()]


class Tracker:
    """Shows a run elsewhere. A subclass is registered: `@register("tracker", name)`; whatever it raises is caught."""

    Config: ClassVar[type[TrackerConfig]] = TrackerConfig
    modules: ClassVar[tuple[str, ...]] = ()
    """What it imports; where one is missing, nothing is run."""
    install: ClassVar[str] = ""
    """What pip is to install then."""
    first: float = 0
    """Steps before it are not told: `start` says so where they are there already."""
    replays = True
    """Whether it is told what metrics.jsonl has from before this process."""

    def __init__(self, config: Any, run: Tracked) -> None:
        self.config = config
        self.run = run

    def start(self) -> None:
        """Begin, or go on with the run of this key."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """All values of a step, None where one is not finite. Steps come in order, each once."""
        raise NotImplementedError

    def finish(self, outcome: Outcome) -> None:
        """End of the run."""

    def abandon(self) -> None:
        """Let go of what is held, after an error."""


class Tracking:
    """The trackers of a run. Without any it drops all values.

    Args:
        make: what makes each, by name.
    """

    def __init__(self, make: Mapping[str, Callable[[], Tracker]] | None = None, directory: Path = Path()) -> None:
        self._directory = directory
        self._running: dict[str, Tracker] = {}
        self._replayed = False
        self._step = 0
        self._values: dict[str, Any] = {}
        self._told = True
        """Whether these values are told, or were on their way when a signal came."""
        for name, made in (make or {}).items():
            with self._guarded(name):
                self._running[name] = made()
                self._running[name].start()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """What was just written to metrics.jsonl."""
        if not self._running:
            return
        if self._replayed:
            self._take(step, values)
        else:
            self._replay(step)

    def finish(self, record: Record, failed: bool, class_names: tuple[str, ...] = ()) -> None:
        """End of the run, whatever is in its record by now."""
        if not self._running:
            return
        if not self._replayed:
            self._replay(math.inf)
        self._tell()
        outcome = Outcome(record, self._directory, failed, self._step, self._values, class_names)
        for name, tracker in list(self._running.items()):
            with self._guarded(name):
                tracker.finish(outcome)

    def _replay(self, step: float) -> None:
        """Tell what metrics.jsonl has, in which what `step` gave is the end."""
        self._replayed = True
        for tracker in self._running.values():
            if not tracker.replays:
                tracker.first = max(tracker.first, step)
        with self._guarded(*self._running):
            for line in MetricsLog(self._directory / METRICS).lines():
                self._take(line.pop("step"), line)

    def _take(self, step: int, values: Mapping[str, Any]) -> None:
        if step != self._step:
            self._tell()
            self._step, self._values = step, {}
        self._values.update(finite(values))
        self._told = False

    def _tell(self) -> None:
        """The step that is whole now."""
        due, self._told = not self._told, True
        for name, tracker in list(self._running.items() if due else ()):
            if self._step >= tracker.first:
                with self._guarded(name):
                    tracker.log(self._step, self._values)

    @contextlib.contextmanager
    def _guarded(self, *names: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a library raises; the run must go on
            for name in names:
                log.warning("%s switched off: %s; metrics.jsonl has all values", name, brief(error))
                if (tracker := self._running.pop(name, None)) is not None:
                    with contextlib.suppress(Exception):
                        tracker.abandon()


def make_tracking(job: Job, role: str) -> Tracking:
    """The started trackers of a run."""
    run = Tracked(job, role)
    make = {one.name: partial(lookup("tracker", one.name, key), one, run) for key, one in _asked(job.config)}
    return Tracking(make, job.directory)


def require_trackers(config: RunConfig) -> None:
    """Raises ConfigError where the package of a tracker is not installed."""
    for key, one in _asked(config):
        kind: type[Tracker] = lookup("tracker", one.name, key)
        missing = [name for name in kind.modules if not _importable(name)]
        if missing:
            remedy = f"pip install '{kind.install or missing[0]}', or choose tracker=none"
            raise ConfigError(f"{key}: {one.name} needs {', '.join(missing)}, which is not installed; {remedy}")


def _asked(config: RunConfig) -> list[tuple[str, TrackerConfig]]:
    """Each with its key."""
    beside = [(f"tracker.also.{k}", one) for k, one in enumerate(config.tracker.also)]
    return [(key, one) for key, one in [("tracker", config.tracker), *beside] if one.name != "none"]


def _importable(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def text_of(value: Any) -> str:
    """A cell of `Outcome.table`."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def brief(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()).partition(" [type=")[0]  # pydantic goes on with a link
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
