"""What a composed configuration says of a sweep, and of no run: its engine, what Hydra would set up for a job."""

from dataclasses import dataclass, field
from typing import Any, Self

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class SweepSettings:
    """Plain nodes, as JSON has them.

    Args:
        engine: the node of `engine`.
        environment: what `hydra.job.env_set` sets.
        logging: of `hydra/job_logging`.
        verbose: `hydra.verbose`.
    """

    engine: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    logging: dict[str, Any] | None = None
    verbose: Any = False

    @classmethod
    def of(cls, composed: DictConfig) -> Self:
        hydra = composed.hydra
        environment = {str(key): str(value) for key, value in plain(hydra.job.env_set).items()}
        return cls(
            plain(composed.get("engine") or {}), environment, plain(hydra.job_logging) or None, plain(hydra.verbose)
        )

    def configure_log(self) -> None:
        """Log as Hydra does in a job."""
        if self.logging is not None:
            configure_log(OmegaConf.create(self.logging), self.verbose)


def plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
