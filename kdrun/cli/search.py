"""A search for hyper-parameters: what Optuna samples is composed, checked and made on the engine of a sweep."""

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.types import Override
from pydantic import Field

from kdrun.config.job import Job
from kdrun.config.space import Dimension
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.files import reason
from kdrun.core.hashing import json_hash
from kdrun.core.schema import Schema
from kdrun.runs.metric import is_percent
from kdrun.runs.metrics_log import MetricsLog
from kdrun.runs.record import read_record
from kdrun.runs.whole import METRICS
from kdrun.training.graph import Node
from kdrun.training.objective import Objective

log = logging.getLogger(__name__)
OWN = ("search=", "search.", "objective=", "engine=", "engine.", "hydra.", "hydra/")
"""What a single run has no use for."""


class SearchConfig(Schema):
    """conf/search/<name>.yaml; part of no run key."""

    name: Literal["optuna"] = "optuna"
    trials: int = Field(20, gt=0)
    """In all, those of earlier commands counted in."""
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**31)
    """With one slot the same command tries the same values."""
    pruner: Literal["median"] | None = None
    """Stops runs that after a quarter of their steps are worse than most were there; null: none."""
    storage: str | None = None
    """A file of SQLite; null: <outputs>/searches/<key>.db."""


def value_of(dimension: Dimension, trial: Any) -> str:
    """The value that a trial of Optuna has, as an override."""
    key, low, high, step = dimension.key, dimension.low, dimension.high, dimension.step
    if dimension.choices:
        return dimension.override(trial.suggest_categorical(key, dimension.choices))
    if dimension.whole:
        return dimension.override(trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=dimension.log))
    return dimension.override(trial.suggest_float(key, low, high, step=step, log=dimension.log))


def space_of(overrides: Sequence[Override]) -> tuple[list[str], list[Dimension]]:
    """The fixed overrides of its runs, and what is searched over; of a key that is given twice the last counts."""
    found: dict[str, str | Dimension] = {}
    for override in overrides:
        key = override.get_key_element()
        found.pop(key, None)
        swept = override.is_sweep_override()
        found[key] = Dimension.of(override) if swept else f"{key}={override.get_value_element_as_str()}"
        if override.is_delete():
            found[key] = str(override.input_line)
    fixed = [value for value in found.values() if isinstance(value, str) and not value.lstrip("+~").startswith(OWN)]
    return fixed, [value for value in found.values() if isinstance(value, Dimension)]


@dataclass
class Search:
    """What is asked for. As the source of a sweep, once it is `begun`.

    Args:
        fixed: the overrides that all trials share.
        first: a run of the space, for the key.
        make: from what a trial overrides to its run, checked; ConfigError: there is no such run.
        flags: of the command line.
    """

    config: SearchConfig
    objective: Objective
    fixed: list[str]
    space: list[Dimension]
    first: Job
    make: Callable[[Sequence[str]], Job]
    flags: list[str]
    waiting: list[Any] = field(default_factory=list)
    """Trials that an earlier command began."""
    open: dict[Path, list[Any]] = field(default_factory=dict)
    """Directory -> trials that are not told of yet."""
    reported: dict[int, set[int]] = field(default_factory=dict)
    """Trial -> steps of the figures that Optuna knows."""

    @cached_property
    def key(self) -> str:
        """Of all that the values of a trial follow from, but the number of trials."""
        seen = self.config.model_dump(include={"name", "sampler", "seed", "pruner"})
        return json_hash([self.first.key, repr(self.space), str(self.objective), seen])

    @cached_property
    def storage(self) -> Path:
        given = self.config.storage
        return self.first.outputs / "searches" / f"{self.key}.db" if given is None else Path(given).expanduser()

    @cached_property
    def study(self) -> Any:
        """Optuna's. Raises ConfigError: Optuna is missing or too old, or the file cannot be used."""
        optuna = _optuna()
        try:
            self.storage.parent.mkdir(parents=True, exist_ok=True)
            return optuna.create_study(
                storage=f"sqlite:///{self.storage.absolute()}", study_name=self.key, load_if_exists=True,
                direction=self.objective.direction, pruner=_pruner(self.config.pruner),
            )  # fmt: skip
        except Exception as error:  # of SQLAlchemy, alembic or the file system
            why = reason(error) if isinstance(error, OSError) else str(error).splitlines()[0]
            raise ConfigError(f"search.storage: {self.storage}: cannot be used ({why}); give another file") from None

    def begin(self) -> str:
        """Open the study; what is said of it. Raises ConfigError: as `study`."""
        study = self.study
        from optuna.trial import Trial, TrialState

        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.waiting.append(Trial(study, frozen._trial_id))
            self.reported[frozen.number] = set(frozen.intermediate_values)
        done = self._count() - len(self.waiting)
        return f"search by {self.objective} ({self.objective.direction}), {done} of {self.config.trials} trials made"

    # ------------------------------------------------------------------------------------------ source of a sweep

    def more(self, free: int) -> list[tuple[Job, str]]:
        """The next trials; one that cannot be made has failed."""
        given: list[tuple[Job, str]] = []
        while len(given) < free:
            trial = self._next()
            if trial is None:
                break
            words = [value_of(dimension, trial) for dimension in self.space]
            try:
                job = self.make(words)
            except ConfigError as error:
                log.warning("trial %d (%s): %s", trial.number, " ".join(words), error.lines[0])
                self._tell(trial, "FAIL")
                continue
            self.open.setdefault(job.directory, []).append(trial)
            given.append((job, f"trial {trial.number} ({' '.join(words)})"))
        return given

    def ended(self, node: Node) -> None:
        """Tell Optuna what came out. What was left out is asked for again by the next command."""
        trials = self.open.get(node.directory)
        if trials is None or node.state == "left":
            return
        value: float | None = None
        state = "PRUNED" if node.state == "pruned" else "FAIL"
        if node.state == "done":
            try:
                value = self.objective.value(read_record(node.directory) or {"status": "gone", "key": ""})
                state = "COMPLETE"
                node.why = f"{self.objective} {self._text(value)}"
            except KdrunError as error:
                node.why = str(error)
        for trial in self.open.pop(node.directory):
            self._tell(trial, state, value)

    def hopeless(self, nodes: Sequence[Node]) -> list[Node]:
        """By what their evaluations have shown since the last look."""
        if self.config.pruner is None:
            return []
        return [node for node in nodes if node.directory in self.open and not node.behind and self._hopeless(node)]

    # --------------------------------------------------------------------------------------------------- the end

    def text(self) -> str:
        """How far it is, the best trial, and the command that makes its run."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        count = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        made = sum(trial.state.is_finished() for trial in trials)
        head = f"{made} of {max(self.config.trials, made)} trials made"
        for state in (TrialState.PRUNED, TrialState.FAIL):
            head += f", {count[state]} {'pruned' if state == TrialState.PRUNED else 'failed'}" if count[state] else ""
        if not count[TrialState.COMPLETE]:
            return f"{head}; none has a figure yet"
        best = self.study.best_trial
        values = [dimension.override(best.params[dimension.key]) for dimension in self.space]
        command = shlex.join(["kdrun", "train", *self.flags, *self.fixed, *values])
        return f"{head}; best: trial {best.number}, {self.objective} {self._text(best.value)}\n{command}"

    def failed(self) -> bool:
        """Whether a trial failed, or is not made yet."""
        from optuna.trial import TrialState

        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        return TrialState.FAIL in states or sum(state.is_finished() for state in states) < self.config.trials

    # --------------------------------------------------------------------------------------------------- private

    def _text(self, value: float) -> str:
        return f"{100 * value:.2f}" if is_percent(str(self.objective)) else f"{value:.4f}"

    def _count(self) -> int:
        return len(self.study.get_trials(deepcopy=False))

    def _next(self) -> Any:
        """A trial; None: there are as many as were asked for."""
        if self.waiting:
            return self.waiting.pop(0)
        count = self._count()
        if count >= self.config.trials:
            return None
        self.study.sampler = _sampler(self.config, count)
        return self.study.ask()

    def _tell(self, trial: Any, state: str, value: float | None = None) -> None:
        from optuna.trial import TrialState

        known = TrialState[state]
        self.study.tell(trial.number, value, state=known, skip_if_finished=True)  # by a copy of this command

    def _hopeless(self, node: Node) -> bool:
        record = read_record(node.directory) or {}
        if record.get("headline") is None:  # not of this start, or not that far
            return False
        trial, key = self.open[node.directory][0], self.objective.key(record)
        known = self.reported.setdefault(trial.number, set())
        for line in MetricsLog(node.directory / METRICS).lines():
            value = line.get(key)
            if line["step"] not in known and isinstance(value, int | float):
                known.add(line["step"])
                trial.report(float(value), line["step"])
                if line["step"] >= record["steps"] / 4 and trial.should_prune():
                    node.why = f"{self.objective} {self._text(value)} at step {line['step']}"
                    return True
        return False


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("search=optuna needs optuna, which is not installed: pip install 'kdrun[search]'") from None
    if int(optuna.__version__.split(".")[0]) < 4:
        raise ConfigError(
            f"search=optuna: optuna {optuna.__version__} is too old (hydra-optuna-sweeper holds it back); "
            "pip install 'kdrun[search]' in an environment without that"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(config: SearchConfig, number: int) -> Any:
    """For one trial: seeded by its number, so that a search that goes on does not begin its draws anew."""
    from optuna import samplers

    seed = int(json_hash([config.seed, number]), 16) % 2**32
    if config.sampler == "random":
        return samplers.RandomSampler(seed)
    if config.sampler == "gp":
        return samplers.GPSampler(seed=seed)
    return samplers.TPESampler(seed=seed)


def _pruner(name: str | None) -> Any:
    from optuna import pruners

    return pruners.NopPruner() if name is None else pruners.MedianPruner()
