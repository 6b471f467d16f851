"""How far a training is, in words.

`s0-1a2b3c: step 500 of 2000, 1,234 images/s, about 4 min left, loss 1.2 (ce 0.9, kd 0.3), val/top1 0.6123`.
"""

import math
from collections.abc import Mapping

from kdrun.config.run import RunConfig
from kdrun.config.schedule import Clock
from kdrun.core.progress import Meter, Speed
from kdrun.training.stopwatch import Stopwatch
from kdrun.training.window import Window


class TrainingMeter(Meter):
    """Tells of each evaluation and of each minute; hears of each step by `update`.

    Nothing here asks the device: losses are those that the window has brought to the host last.

    Args:
        name: of the run.
        headline: the network whose top-1 is told.
        done: steps before this session.
        watch: of this session.
        speaks: false: another rank tells.
    """

    def __init__(
        self, name: str, config: RunConfig, clock: Clock, headline: str, done: int, watch: Stopwatch, window: Window,
        speaks: bool,
    ) -> None:  # fmt: skip
        super().__init__(name, clock.total_steps, "images", done, speaks)
        self._schedule, self._clock, self._headline = config.schedule, clock, headline
        self._watch, self._window = watch, window
        self._images = sum(config.method_class.batch_sizes(config).values())  # of a step, on all ranks
        self._earlier, self._evaluations = self._due(0) - self._due(done), 0
        self._figures: list[str] = []
        self._begun = False
        self._look_at = 0.0  # at the first step: what it compiles and warms up says nothing of the next ones

    def words(self) -> str:
        speed = self._speed.at(self.done, self._watch.without_evaluation()) if self._begun else None
        rates = self._rates(speed and speed * self._images, speed and self._left(speed))
        return ", ".join([f"{self.name}: step {self.done} of {self.total}", *rates, *self._losses()])

    def bar_words(self) -> str:
        """With the figures of the last evaluation."""
        return ", ".join([self.words(), *self._figures])

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """All networks have been, after the last step that was told."""
        self._evaluations += 1
        keys = {split: f"{split}/{self._headline}/top1" for split in ("val", "test")}
        self._figures = [f"{split}/top1 {metrics[key]:.4f}" for split, key in keys.items() if key in metrics]
        self._tell(self.bar_words())

    def _look(self, now: float) -> None:
        if not self._begun:
            self._begun, self._speed = True, Speed(self.done, self._watch.without_evaluation())
        super()._look(now)

    def _left(self, speed: float) -> float:
        """Seconds of the steps to come at this speed, and of evaluations to come as those before them took."""
        return (self._clock.total_steps - self.done) / speed + self._due(self.done) * self._evaluation()

    def _evaluation(self) -> float:
        """Seconds of one, in this session, else in those before it; 0: not known yet."""
        if self._evaluations:
            return self._watch.spent["eval"] / self._evaluations
        return self._watch.before["eval"] / self._earlier if self._earlier else 0.0

    def _due(self, done: int) -> int:
        """Evaluations after so many steps."""
        return self._schedule.evaluations(self._clock, done)

    def _losses(self) -> list[str]:
        losses = self._window.losses
        if not losses:
            return []
        parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        return [f"loss {math.fsum(losses.values()):.4g}" + (f" ({parts})" if len(losses) > 1 else "")]

    def _ended(self) -> None:
        """The last evaluation has told it."""
