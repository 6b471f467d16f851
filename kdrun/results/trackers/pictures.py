"""The pictures of a run that trackers are given once it is done: drawn after training, once for all of them."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kdrun.core.later import later
from kdrun.results.plots.options import RunOptions
from kdrun.training.tracking import Outcome, brief

if TYPE_CHECKING:
    from PIL import Image

    from kdrun.results.plots import confusion, judged, reliability
    from kdrun.runs.finished import FinishedRun
else:
    Image = later("PIL.Image")
    confusion = later("kdrun.results.plots.confusion")
    judged = later("kdrun.results.plots.judged")
    reliability = later("kdrun.results.plots.reliability")
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def pictures(outcome: Outcome) -> Mapping[str, "Image.Image"]:
    """By name, of the headline network's predictions of the test images (without any, of the validation images)."""
    if outcome.failed:
        return {}
    try:
        return _drawn(outcome)
    except Exception as error:  # a picture less stops no tracker
        log.warning("no pictures for the trackers: %s", brief(error))
        return {}


def _drawn(outcome: Outcome) -> dict[str, "Image.Image"]:
    run, net = FinishedRun(outcome.directory, outcome.record), outcome.record["headline"]
    split = next((split for split in ("test", "val") if f"{split}-{net}" in run.predicted), None)
    if split is None:
        return {}
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its fonts
    options = RunOptions.model_validate({"run": str(run.directory), "split": split})
    out = {}
    with TemporaryDirectory() as folder:
        for name in ("reliability", "confusion"):
            path = Path(folder, f"{name}.png")
            if name == "reliability":
                reliability.draw(judged.judged(run, options), [path])
            else:
                confusion.draw(*run.predictions(split, net), outcome.class_names, [path])
            with Image.open(path) as image:
                out[name] = image.convert("RGB")
    return out
