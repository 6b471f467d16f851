"""The runs of a table as jobs. Each cell is composed once and kept beside the plan: a start composes nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kdrun.config.job import Job
from kdrun.config.nodes import dump, from_record
from kdrun.config.sweep import SweepSettings
from kdrun.results.kept import digest_of, keep, kept
from kdrun.results.plan import cache_of, composed_anew, composed_cells, keep_plan, kept_plan, make_plan
from kdrun.results.spec import TableConfig

KEYLESS = ("engine", "execution", "tracker", "hydra")
"""Nodes of which nothing is in a run key."""


@dataclass
class TableJobs:
    """The runs of all cells, each once, and how they are to be made."""

    jobs: list[Job]
    settings: SweepSettings


def table_jobs(name: str, spec: TableConfig, outputs: Path, extra: Sequence[str]) -> TableJobs:
    """All runs of a table with more of the command line for each. Its plan is kept by the way.

    Raises:
        ConfigError: a cell cannot be composed.
    """
    path = cache_of(name, outputs).with_suffix(".jobs.json")
    digest = digest_of(f"{spec.model_dump_json()} {outputs} {list(extra)}")
    value = None if composed_anew(spec) else kept(path, digest)
    if value is not None:
        jobs = [Job(from_record(config), tuple(overrides)) for overrides, config in value["jobs"]]
        return TableJobs(jobs, SweepSettings(**value["settings"]))
    made = _composed(name, spec, outputs, [f"execution.outputs={outputs}", *extra])
    if not composed_anew(spec):
        runs = [(job.overrides, dump(job.config)) for job in made.jobs]
        keep(path, digest, {"settings": asdict(made.settings), "jobs": runs})
    return made


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def _composed(name: str, spec: TableConfig, outputs: Path, more: Sequence[str]) -> TableJobs:
    made: dict[tuple[str, ...], list[Job]] = {}  # cells that show other figures of the same runs share them
    settings = SweepSettings({})
    cells = []
    for cell in composed_cells(name, spec, more):
        _, _, _, overrides, composed, configs, _ = cell
        seeds = zip(spec.seeds, configs, strict=True)
        made[tuple(overrides)] = [Job(config, (*overrides, *more, f"seed={seed}")).asked() for seed, config in seeds]
        settings = SweepSettings.of(composed)
        cells.append(cell)
    keyless = all(_key(word).split(".")[0] in KEYLESS for word in more)
    if keyless and not composed_anew(spec) and kept_plan(name, spec, outputs) is None:
        keep_plan(name, spec, outputs, make_plan(name, spec, cells))
    return TableJobs([job for jobs in made.values() for job in jobs], settings)
