"""No tracker."""

from collections.abc import Mapping
from typing import Any

from kdrun.core.registry import register
from kdrun.training.tracking import Tracker


@register("tracker", "none")
class NoTracker(Tracker):
    """Nothing beside the files of the run directory."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        return
