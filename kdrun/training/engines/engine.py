"""What an engine is: it starts runs in its slots, and tells how they ended. It knows no graph and reads no YAML."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from kdrun.config.nodes import part_config
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.core.schema import Schema
from kdrun.training.task import Ended, Task


class EngineConfig(Schema):
    """conf/engine/<name>.yaml; part of no run key. A class's own `Config` adds its keys."""

    name: str
    retries: int = Field(1, ge=0)
    """How often a run that failed, or was killed, is tried again; not one that is not finite, or cannot be."""
    limit: int | None = Field(None, gt=0)
    """So many runs are made at most, what others need counted in; null: all."""


def engine_of(node: Mapping[str, Any]) -> "tuple[type[Engine], Any]":
    """The class that the node of `engine` names, and its configuration. Raises ConfigError: there is none such."""
    config = part_config("engine", dict(node), "engine")
    return lookup("engine", config.name, "engine.name"), config


class Engine(ABC):
    """Makes runs. Use it as a context.

    Raises (all of it):
        ConfigError: it is not there, or has not what is asked of it; one line.
    """

    Config: ClassVar[type[EngineConfig]] = EngineConfig
    slots: int
    """How many runs it takes at once."""
    inline = False
    """Whether `start` makes them in this very process, one after the other."""
    queues = False
    """Whether what it starts may wait elsewhere."""

    @classmethod
    def prepare(cls, config: Any) -> None:
        """Before anything is planned: is there what it needs? Begin what takes time. Nothing heavy is loaded for it."""
        return

    def __init__(self, config: Any) -> None:
        self.config = config

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def text(self) -> str:
        """What is said of it at the start."""
        return f"engine {self.config.name}, {self.slots} at once"

    @property
    def queued(self) -> frozenset[str]:
        """Those that were started, and still wait for a place elsewhere, as far as that is known."""
        return frozenset()

    @abstractmethod
    def start(self, tasks: Mapping[str, Task]) -> None:
        """Begin these runs, by name; never more than there are free slots."""

    @abstractmethod
    def wait(self, seconds: float) -> list[tuple[str, Ended]]:
        """The runs that have ended since, at the latest after so many seconds."""

    @abstractmethod
    def stop(self) -> None:
        """End all that runs, each with its checkpoint, and wait for that."""

    def apart(self) -> None:
        """Make runs beside this process, so that `end` can be asked for. Raises ConfigError: it cannot end one run."""
        raise ConfigError(f"search.pruner: engine={self.config.name} cannot stop one run of several; leave it out")

    def end(self, name: str) -> None:
        """Have one run end with its checkpoint; `wait` tells of it."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the engine holds; nothing runs any more."""
        return
