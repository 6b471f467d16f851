"""Mirrors of the curves: wandb, or nothing. The record on disk is the source of truth and never depends on them."""

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kdrun.config import RunConfig, dump, run_key
from kdrun.record import finite

log = logging.getLogger(__name__)
INIT_TIMEOUT = 8  # seconds until an unreachable server makes the run go offline


class Tracker:
    """Takes the values that metrics.jsonl takes. This one drops them."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step."""

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        """End of the run."""


class Wandb(Tracker):
    """A wandb run named by the run key, so that a resumed run continues its curve."""

    def __init__(self, config: RunConfig, directory: Path, job_type: str) -> None:
        import wandb

        tracker = config.tracker
        options: dict[str, Any] = {
            "project": tracker.project,
            "entity": tracker.entity,
            "tags": tracker.tags or None,
            "dir": str(directory),
            "id": run_key(config),
            "name": directory.name,
            "group": "/".join(directory.parts[-4:-1]),
            "job_type": job_type,
            "config": dump(config),
            "reinit": "finish_previous",
            "settings": wandb.Settings(
                console="off", silent=True, x_disable_stats=True, init_timeout=INIT_TIMEOUT, x_disable_meta=True
            ),
        }
        mode: Any = tracker.mode or os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        try:
            if mode == "online":
                self.run = wandb.init(**options, mode="online", resume="allow")
            else:
                self.run = wandb.init(**options, mode=mode)
        except wandb.Error as error:
            if mode != "online":
                raise
            log.warning("wandb: %s; going on offline", str(error).splitlines()[0])
            self.run = wandb.init(**options, mode="offline")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(finite(values), step=step)

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        self.run.summary.update(finite(summary))
        self.run.finish(exit_code=1 if failed else 0)


def has_key() -> bool:
    """Whether a wandb key is configured, in the environment or by `wandb login` (which writes netrc)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Guarded(Tracker):
    """A tracker whose failures (a full disk, a lost server) are said once and never stop training."""

    def __init__(self, make: Any) -> None:
        self._tracker: Tracker = Tracker()
        self._try(lambda: setattr(self, "_tracker", make()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker.log(step, values))

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        self._try(lambda: self._tracker.finish(summary, failed))

    def _try(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # whatever the tracker's library raises; the run must go on
            log.warning(
                "tracker switched off: %s: %s", type(error).__name__, str(error).splitlines()[0] if str(error) else ""
            )
            self._tracker = Tracker()


def make_tracker(config: RunConfig, directory: Path, job_type: str = "train") -> Tracker:
    """The tracker that `tracker.name` names."""
    if config.tracker.name == "none":
        return Tracker()
    return Guarded(lambda: Wandb(config, directory, job_type))
