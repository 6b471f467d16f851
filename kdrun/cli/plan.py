"""The plan of a command line: all jobs, composed and checked before anything runs."""

import os
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from kdrun.config.compose import Composer, basic, parser
from kdrun.config.job import Job
from kdrun.config.nodes import dump
from kdrun.config.sweep import SweepSettings, plain
from kdrun.config.values import leaves
from kdrun.core.counting import counted
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.later import later
from kdrun.core.registry import line_in_plugin, load_plugins, loaded_plugins
from kdrun.core.schema import build
from kdrun.runs.record import finished_record
from kdrun.runs.whole import require_whole

if TYPE_CHECKING:
    from kdrun.cli.search import Search, SearchConfig, space_of
    from kdrun.runs.place import settled
    from kdrun.training.check import check, check_measurements
    from kdrun.training.engines.engine import engine_of
    from kdrun.training.objective import Objective
else:
    settled = later("kdrun.runs.place", "settled")
    Search, SearchConfig, space_of = later("kdrun.cli.search", "Search", "SearchConfig", "space_of")
    Objective = later("kdrun.training.objective", "Objective")
    engine_of = later("kdrun.training.engines.engine", "engine_of")
    check, check_measurements = later("kdrun.training.check", "check", "check_measurements")


@dataclass(frozen=True)
class Plan:
    """What a command line asks for.

    Args:
        settings: of a sweep that kdrun carries out by itself; None: Hydra does, by the launcher that was asked for.
        search: which finds out its jobs as it goes.
    """

    jobs: list[Job]
    settings: SweepSettings | None = None
    search: "Search | None" = None


def plan(arguments: Sequence[str], start: bool = True) -> Plan | None:
    """All jobs of a command line, checked. None where only Hydra knows them (`--cfg`, completion, other sweepers).

    Args:
        start: whether what comes of it is started, and its engine has to be there.

    Raises:
        ConfigError: one line for every mistake of every job.
    """
    args = parser().parse_args(list(arguments))
    if args.shell_completion or args.hydra_help or args.info is not None or args.experimental_rerun:
        return None
    if args.config_path is not None:
        raise ConfigError("--config-path: kdrun's own configs are always needed; add yours with --config-dir")
    with Composer(args.config_dir, args.config_name or "config") as composer:
        if args.cfg is not None:
            if args.multirun and len(composer.expand(args.overrides, True) or ()) != 1:
                raise ConfigError("--cfg: shows one job, and this is a sweep; give each key one value")
            composer.compose(args.overrides)
            return None
        expanded = composer.expand(args.overrides, bool(args.multirun))
        settings = composer.settings
        if start and args.multirun and _ours(settings):
            kind, engine = engine_of(plain(settings.engine))
            kind.prepare(engine)
        if expanded is None and settings.get("search"):
            return _search(composer, args.overrides, _flags(args))
        if expanded is None:
            _check_decider(composer, args.overrides)
            return None
        if settings.get("search"):
            raise ConfigError("search: of one run there is nothing to search; give kdrun sweep")
        if not expanded:
            raise ConfigError("command line: a sweep over no value, so of no job; give each swept key a value")
        jobs, errors = [], []
        for overrides in counted(expanded, "composing jobs"):
            job: Job | None = None
            try:
                job = settled(composer.job(overrides))
                jobs.append((overrides, job.asked()))
            except Exception as error:
                errors += [(overrides, line) for line in _one_line(error, job)]
    if errors:
        raise ConfigError(*_lines_of(errors, len(expanded), expanded))
    ours = [job for _, job in jobs]
    objective = settings.get("objective")
    require_possible(ours, None if objective is None else Objective.of(objective))
    return _by_engine(ours, settings) if args.multirun else Plan(ours)


def _ours(composed: DictConfig) -> bool:
    """Whether an engine makes the runs: callbacks and other launchers are Hydra's."""
    hydra: Any = composed.hydra
    return str(hydra.launcher.get("_target_")).endswith("BasicLauncher") and not hydra.get("callbacks")


def _by_engine(jobs: list[Job], composed: DictConfig) -> Plan:
    if _ours(composed):
        return Plan(jobs, SweepSettings.of(composed))
    hydra: Any = composed.hydra
    asked = [word for word in hydra.overrides.task if word.lstrip("+").startswith(("engine=", "engine."))]
    if asked:
        raise ConfigError(f"{asked[0]}: Hydra's launcher makes the runs; leave it out, or hydra/launcher")
    return Plan(jobs)


def _search(composer: Composer, overrides: Sequence[str], flags: list[str]) -> Plan:
    """Raises ConfigError: one line for each mistake of what all trials share, and of the first values."""
    composed: Any = composer.settings
    settings = _by_engine([], composed).settings
    if settings is None or not basic(composed.hydra):
        raise ConfigError("search: kdrun makes the runs; leave it out, or Hydra's launcher, sweeper and callbacks")
    config, objective = build(SearchConfig, plain(composed.search), "search"), Objective.of(composed.get("objective"))
    fixed, space = space_of(composer.swept(overrides))
    if not space:
        raise ConfigError("search: over no key; give one as schedule.lr=interval(0.01,1) or loss=choice(ce,kd)")
    if any(dimension.key == "seed" for dimension in space):
        raise ConfigError("seed: a search would choose the luckiest; give one seed, and repeat the best with others")

    def made(inner: Composer, words: Sequence[str]) -> Job:
        job = settled(inner.job([*fixed, *words]))
        require_possible([job], objective)
        return job

    def make(words: Sequence[str]) -> Job:
        with Composer(composer.config_dir, composer.config_name) as inner:
            return made(inner, words)

    first = made(composer, [dimension.first() for dimension in space])
    return Plan([], settings, Search(config, objective, fixed, space, first, make, flags))


def _flags(args: Namespace) -> list[str]:
    """What of the flags says which configs are composed."""
    folder = [] if args.config_dir is None else ["--config-dir", args.config_dir]
    return folder + ([] if args.config_name is None else ["--config-name", args.config_name])


def _check_decider(composer: Composer, overrides: Sequence[str]) -> None:
    """Of a sweeper of Hydra's that decides as it goes: what it goes by, and one run with its first values.

    Raises:
        ConfigError: one line for each mistake.
    """
    settings: Any = composer.settings
    objective = Objective.of(settings.get("objective"))
    minimizes, remedy = _minimizes(plain(settings.hydra.sweeper))
    if minimizes is not None and minimizes != (objective.direction == "minimize"):
        more = "less" if minimizes is False else "more"
        raise ConfigError(f"objective: of {objective} {more} is better, and the sweeper does not know; give {remedy}")
    fixed, space = space_of(composer.swept(overrides))
    require_possible([settled(composer.job([*fixed, *(dimension.first() for dimension in space)]))], objective)


def _minimizes(sweeper: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether it does, and how to turn that; None: only the sweeper knows."""
    direction = sweeper.get("direction")
    if (given := getattr(direction, "name", direction)) in ("minimize", "maximize"):  # Optuna
        low = given == "minimize"
        return low, f"hydra.sweeper.direction={'maximize' if low else 'minimize'}"
    if isinstance(given := (sweeper.get("optim") or {}).get("maximize"), bool):  # Nevergrad
        return not given, f"hydra.sweeper.optim.maximize={str(not given).lower()}"
    experiment = (sweeper.get("ax_config") or {}).get("experiment") or {}
    if isinstance(given := experiment.get("minimize"), bool):  # Ax
        return given, f"hydra.sweeper.ax_config.experiment.minimize={str(not given).lower()}"
    return None, ""


def require_possible(jobs: Sequence[Job], objective: "Objective | None" = None) -> None:
    """What only the data, the disk and the machine can tell, for the jobs that are not done yet.

    Args:
        objective: which all jobs must have.

    Raises:
        ConfigError: one line for every mistake of every job.
    """
    errors = _check(jobs, objective)
    if errors:
        raise ConfigError(*_lines_of(errors, len(jobs), [job.overrides for job in jobs]))


def _check(jobs: Sequence[Job], objective: "Objective | None") -> list[tuple[tuple[str, ...], str]]:
    errors = []
    for outputs, given in {job.outputs: job.config.execution.outputs for job in jobs}.items():
        if problem := _not_writable(outputs):
            return [((), f"execution.outputs: {given}: {problem}")]
    for job in jobs:
        try:
            load_plugins(job.config.plugins)  # another job may have put its own in their place
            done = finished_record(job.directory)
            if done is None:
                check(job)
            else:
                require_whole(job.directory, done)
                check_measurements(job)
            if objective is not None:
                objective.require(job)
        except Exception as error:
            errors += [(job.overrides, line) for line in _one_line(error, job)]
    return errors


def _one_line(error: Exception, job: Job | None) -> list[str]:
    """The lines for the user, of a mistake, of what the file system says, and of what a plug-in raises.

    Raises:
        Exception: `error`, where it is none of these: a bug of kdrun's own, which shows where it came from.
    """
    if isinstance(error, KdrunError):
        return str(error).splitlines()
    if isinstance(error, OSError):
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | Path) else ""
        key = _key_of(place, job)
        shown = place if len(place) < 200 else f"{place[:200]}…"
        what = error.strerror or str(error)
        return [f"{key}{f'{shown}: ' if shown else ''}{what}; give another path, or its owner gives you access"]
    place = line_in_plugin(error) or ", ".join(job.config.plugins if job is not None else loaded_plugins())
    if place:
        return [" ".join(f"plugins: {place}: {type(error).__name__}: {error}; see docs/extend".split())]
    raise error


def _key_of(place: str, job: Job | None) -> str:
    """`dataset.root: `: the key whose value a path begins with; empty: none does."""
    values = leaves(dump(job.config)) if job is not None and place else ()
    paths = {key: os.path.expanduser(value) for key, value in values if isinstance(value, str) and value}
    real = os.path.abspath(place)
    found = [key for key, path in paths.items() if f"{real}/".startswith(f"{os.path.abspath(path)}/")]
    return f"{max(found, key=lambda key: len(paths[key]))}: " if found else ""


def _not_writable(outputs: Path) -> str | None:
    existing = outputs.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"cannot write there ({error.strerror}); choose another directory"


def _lines_of(errors: list[tuple[tuple[str, ...], str]], count: int, jobs: list[tuple[str, ...]]) -> list[str]:
    """Each mistake once; in a sweep with the overrides of the job that has it, unless all have it."""
    lines: dict[str, list[tuple[str, ...]]] = {}
    for overrides, line in errors:
        lines.setdefault(line, []).append(overrides)
    out = []
    for line, owners in lines.items():
        if count == 1 or len(owners) == count or owners == [()]:
            out.append(line)
        else:
            own = " ".join(o for o in owners[0] if any(o not in job for job in jobs))
            more = f" and {len(owners) - 1} more" if len(owners) > 1 else ""
            out.append(f"job {jobs.index(owners[0])} ({own}){more}: {line}")
    return out
