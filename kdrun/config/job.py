"""One run that is to be made: its configuration, the key and the directory that follow, and the runs that it needs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from kdrun.config.key import run_dir, run_key
from kdrun.config.run import RunConfig
from kdrun.core.hashing import json_hash
from kdrun.core.registry import load_plugins


@dataclass(frozen=True, eq=False)
class Job:
    """A typed configuration, hashed once and asked once for what it needs: whoever checks, runs or lists it shares it.

    Args:
        overrides: what the user gave, without Hydra's own keys; of a run that another one needs: nothing.
        content: of its data, where another run on other data has its place, see `kdrun.runs.place`.
    """

    config: RunConfig
    overrides: tuple[str, ...] = ()
    content: str | None = None

    @classmethod
    def of(cls, run: "Job | RunConfig") -> "Job":
        return run if isinstance(run, Job) else cls(run)

    @cached_property
    def key(self) -> str:
        """The run key."""
        key = run_key(self.config)
        return key if self.content is None else key_on(self.content, key)

    @cached_property
    def place(self) -> str:
        """Its directory below the outputs folder."""
        return run_dir(self.config, self.key)

    @property
    def outputs(self) -> Path:
        return Path(self.config.execution.outputs).expanduser()

    @property
    def directory(self) -> Path:
        return self.outputs / self.place

    @property
    def first(self) -> Path:
        """Where it would lie if no run on other data did."""
        return self.outputs / run_dir(self.config)

    @cached_property
    def requires(self) -> dict[str, "Job"]:
        """The runs that must be finished first, by role."""
        return {role: Job(config) for role, config in self.config.method_class.requires(self.config).items()}

    def asked(self) -> Self:
        """The same, with the keys of all that it needs: now, while its plug-ins are loaded."""
        _ = self.key
        for other in self.requires.values():
            other.asked()
        return self


def key_on(content: str, key: str) -> str:
    """The key of a run on data with this content, where the place of `key` holds a run on other data."""
    return json_hash({"key": key, "content": content})


@contextmanager
def planned(jobs: Iterable[Job]) -> Iterator[None]:
    """While these are run, `planned_job` knows them: Hydra composes each once more, and what was checked is run."""
    _PLANNED.update({job.overrides: job for job in jobs})
    try:
        yield
    finally:
        _PLANNED.clear()


def planned_job(overrides: Iterable[str]) -> Job | None:
    """The job that this process has planned for these overrides, its plug-ins loaded; None in a launcher's worker."""
    job = _PLANNED.get(tuple(overrides))
    if job is not None:
        load_plugins(job.config.plugins)  # another job of the sweep may have put its own in their place
    return job


_PLANNED: dict[tuple[str, ...], Job] = {}
