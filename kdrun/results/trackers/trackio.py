"""Trackio: a local dashboard, or a Space of Hugging Face (TRACKIO_SPACE_ID)."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from kdrun.config.nodes import dump
from kdrun.config.parts import TrackerConfig
from kdrun.core.later import later
from kdrun.core.registry import register
from kdrun.results.trackers.pictures import pictures
from kdrun.training.tracking import Outcome, Tracker

trackio = later("trackio")


@register("tracker", "trackio")
class Trackio(Tracker):
    """It knows a run by its name alone: so the run key stands behind the name."""

    class Config(TrackerConfig):
        name: str = "trackio"
        project: str = Field("kdrun", min_length=1)

    modules = ("trackio",)
    install = "kdrun[trackio]"

    def start(self) -> None:
        with _quiet():
            self._mirror: Any = trackio.init(
                project=self.config.project, name=f"{self.run.name} {self.run.key}", group=self.run.group,
                config=dump(self.run.config), resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        self.first = self._mirror._next_step  # 0 for a new one

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._mirror.log({name: value for name, value in values.items() if value is not None}, step=step)

    def finish(self, outcome: Outcome) -> None:
        columns, rows = outcome.table
        shown = {name: trackio.Image(image) for name, image in pictures(outcome).items()}
        if rows:
            shown["results"] = trackio.Table(data=rows, columns=columns)
        if shown:
            self._mirror.log(shown, step=outcome.step)
        with _quiet():
            self._mirror.finish()


def _quiet() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())
