"""The runs of a table as jobs. Each cell is composed once and kept beside the plan: a start composes nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kdrun.config.compose import Composer, configs_of_seeds
from kdrun.config.job import Job
from kdrun.config.nodes import dump, from_record
from kdrun.config.sweep import SweepSettings
from kdrun.core.errors import ConfigError
from kdrun.results.kept import digest_of, keep, kept
from kdrun.results.plan import TableConfig, cache_of, composed_anew


@dataclass
class TableJobs:
    """The runs of all cells, each once, and how they are to be made."""

    jobs: list[Job]
    settings: SweepSettings


def table_jobs(name: str, spec: TableConfig, outputs: Path, extra: Sequence[str]) -> TableJobs:
    """All runs of a table with more of the command line for each.

    Raises:
        ConfigError: a cell cannot be composed.
    """
    path = cache_of(name, outputs).with_suffix(".jobs.json")
    digest = digest_of(f"{spec.model_dump_json()} {outputs} {list(extra)}")
    value = None if composed_anew(spec) else kept(path, digest)
    if value is not None:
        jobs = [Job(from_record(config), tuple(overrides)) for overrides, config in value["jobs"]]
        return TableJobs(jobs, SweepSettings(**value["settings"]))
    made = _composed(name, spec, [f"execution.outputs={outputs}", *extra])
    if not composed_anew(spec):
        runs = [(job.overrides, dump(job.config)) for job in made.jobs]
        keep(path, digest, {"settings": asdict(made.settings), "jobs": runs})
    return made


def _composed(name: str, spec: TableConfig, more: Sequence[str]) -> TableJobs:
    made: dict[tuple[str, ...], list[Job]] = {}
    settings = SweepSettings({})
    with Composer() as composer:
        for row, of_row in spec.rows.items():
            for column, words in spec.columns.items():
                for candidate in spec.tune.get(row, [[]]):
                    overrides = (*words, *of_row, *candidate, *more)
                    if overrides in made:
                        continue
                    try:
                        composed = composer.compose(overrides)
                        configs = configs_of_seeds(composed, spec.seeds)
                    except ConfigError as error:
                        raise ConfigError(*(f"table={name}: {row}, {column}: {line}" for line in error.lines)) from None
                    made[overrides] = [
                        Job(config, (*overrides, f"seed={seed}"))
                        for seed, config in zip(spec.seeds, configs, strict=True)
                    ]
                    settings = SweepSettings.of(composed)
    return TableJobs([job for jobs in made.values() for job in jobs], settings)
