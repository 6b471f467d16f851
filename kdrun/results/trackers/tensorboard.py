"""TensorBoard: a folder for each run, below one for each group of seeds."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdrun.config.nodes import dump
from kdrun.config.parts import TrackerConfig
from kdrun.core.files import remove
from kdrun.core.later import later
from kdrun.core.registry import register
from kdrun.results.trackers.pictures import pictures
from kdrun.training.tracking import Outcome, Tracked, Tracker, text_of

if TYPE_CHECKING:
    import numpy as np
    from torch.utils import tensorboard
else:
    np = later("numpy")
    tensorboard = later("torch.utils.tensorboard")

FLUSH = 10  # seconds until an event is in its file
ROOM = 1 << 20  # bytes that must be free: a thread writes the file, and where the disk is full it prints a traceback


@register("tracker", "tensorboard")
class TensorBoard(Tracker):
    """Written anew where a run goes on, so that no curve turns back."""

    class Config(TrackerConfig):
        name: str = "tensorboard"
        folder: str | None = None
        """null: <outputs>/tensorboard."""

    modules = ("tensorboard",)
    install = "kdrun[tensorboard]"

    def __init__(self, config: "TensorBoard.Config", run: Tracked) -> None:
        super().__init__(config, run)
        above = run.job.outputs / "tensorboard" if config.folder is None else Path(config.folder).expanduser()
        self._folder = above / run.group / run.directory.name

    def start(self) -> None:
        remove(self._folder)
        self._writer = tensorboard.SummaryWriter(str(self._folder), flush_secs=FLUSH)
        told = yaml.safe_dump(dump(self.run.config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in [self.run.name, *told.splitlines()]))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if shutil.disk_usage(self._folder).free < ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def finish(self, outcome: Outcome) -> None:
        columns, rows = outcome.table
        if rows:
            lines = [columns, ["---"] * len(columns), *rows]
            told = "\n".join("| " + " | ".join(map(text_of, line)) + " |" for line in lines)
            self._writer.add_text("results", told, outcome.step)
        for name, image in pictures(outcome).items():
            self._writer.add_image(name, np.asarray(image), outcome.step, dataformats="HWC")
        self._writer.close()

    def abandon(self) -> None:
        self._writer.close()
