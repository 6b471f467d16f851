"""How far a long job is: a bar on a terminal, elsewhere a line each minute, in the same words.

Lines go to the log: to stdout, and to log.txt where a run is made; by commands that have no log, to stderr. Where a bar
is drawn on the same terminal, and where nothing is to be shown, log.txt alone has them. Jobs of seconds show nothing.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TextIO, TypeVar

from kdrun.core.quantities import duration, readable

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)
T = TypeVar("T")
MINUTE = 60.0
SHORT = 2.0
"""Seconds before which a job shows nothing."""
OFTEN = 0.2
"""Seconds between two pictures of a bar."""
_ASKED: list[bool | None] = [None]


@contextmanager
def shown(asked: bool | None) -> Iterator[None]:
    """Inside, jobs have a bar (true), no bar and lines in log.txt alone (false), or a bar on a terminal (None)."""
    _ASKED.append(asked)
    try:
        yield
    finally:
        _ASKED.pop()


class Speed:
    """Units a second over the last one to two minutes.

    Args:
        done: units at its beginning, which do not count.
        seconds: at which it begins.
    """

    def __init__(self, done: float, seconds: float) -> None:
        self._before = self._last = done, seconds

    def at(self, done: float, seconds: float) -> float | None:
        """None: not known yet."""
        if seconds - self._last[1] >= MINUTE:
            self._before, self._last = self._last, (done, seconds)
        count, took = done - self._before[0], seconds - self._before[1]
        return count / took if count > 0 and took > 0 else None


class Meter:
    """Tells how far a job is, of which it hears by `update`. Use it as a context.

    Args:
        name: what goes on.
        total: units in all; None: not known.
        unit: in the plural; B: bytes.
        done: units that were done before.
        speaks: false: another process tells.
    """

    def __init__(self, name: str, total: int | None, unit: str = "images", done: int = 0, speaks: bool = True) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        asked, quiet = _ASKED[-1], not speaks or _is_silenced()
        self._draws = not quiet and (_is_terminal(sys.stderr) if asked is None else asked)
        self._aloud = not quiet and asked is not False and not (self._draws and _is_terminal(sys.stdout))
        self._bar: tqdm[NoReturn] | None = None
        self._told = False
        self._began = monotonic()
        self._speed = Speed(done, 0.0)
        self._line_at = self._began + MINUTE
        self._look_at = self._began + SHORT

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._told and kind is None:
            self._ended()

    def update(self, count: int = 1) -> None:
        """So many units more are done."""
        self.done += count
        now = monotonic()
        if now >= self._look_at:
            self._look(now)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each a unit that is done when the next one is asked for."""
        for item in items:
            yield item
            self.update()

    def words(self) -> str:
        """`packing: 300 of 5000 images, 512 images/s, about 2 min left`."""
        of = "" if self.total is None else f" of {self._counted(self.total)}"
        speed = self._speed.at(self.done, monotonic() - self._began)
        left = None if speed is None or self.total is None else (self.total - self.done) / speed
        return ", ".join([f"{self.name}: {self._counted(self.done)}{of}{self._unit}", *self._rates(speed, left)])

    def bar_words(self) -> str:
        """What stands beside the bar."""
        return self.words()

    def _rates(self, speed: float | None, left: float | None) -> list[str]:
        """What is known of them. A unit that takes longer than a second has no rate that anybody reads."""
        rates = []
        if speed is not None and self.unit == "B":
            rates.append(f"{readable(speed)}/s")
        elif speed is not None and speed >= 1:
            rates.append(f"{speed:,.{0 if speed >= 10 else 1}f} {self.unit}/s")
        if left is not None and left >= 0.5:  # else it would be 0 s
            rates.append(f"about {duration(left)} left")
        return rates

    @property
    def _unit(self) -> str:
        return "" if self.unit == "B" else f" {self.unit}"

    def _counted(self, count: int) -> str:
        return readable(count) if self.unit == "B" else str(count)

    def _look(self, now: float) -> None:
        if now >= self._line_at:
            self._tell(self.words())
        if self._draws:
            self._draw()
        self._look_at = min(now + OFTEN, self._line_at) if self._draws else self._line_at

    def _tell(self, text: str) -> None:
        self._told, self._line_at = True, monotonic() + MINUTE
        if self._aloud and log.isEnabledFor(logging.INFO):
            log.info("%s", text)
            return
        _into_log_file(text)
        if self._aloud:
            print(text, file=sys.stderr, flush=True)

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.n = self.done
            self._bar.set_description_str(self.bar_words())
            return
        from tqdm import tqdm

        form = "{desc}" if self.total is None else "{percentage:3.0f}% |{bar:20}| {desc}"
        self._bar = tqdm(
            desc=self.bar_words(), total=self.total, initial=self.done, bar_format=form, leave=False,
            dynamic_ncols=True, file=sys.stderr,
        )  # fmt: skip

    def _ended(self) -> None:
        took = duration(monotonic() - self._began)
        self._tell(f"{self.name}: {self._counted(self.done)}{self._unit} in {took}")


def metered(items: Iterable[T], name: str, total: int, unit: str = "images") -> Iterator[T]:
    """The items, as `Meter.over` them."""
    with Meter(name, total, unit) as meter:
        yield from meter.over(items)


def _is_terminal(stream: TextIO | Any) -> bool:
    return bool(getattr(stream, "isatty", bool)())


def _is_silenced() -> bool:
    """Whether this process leaves it to another rank to tell."""
    return logging.getLogger("kdrun").level > logging.INFO


def _into_log_file(text: str) -> None:
    """To who listens to kdrun itself: what prints listens to all that is logged."""
    line = log.makeRecord(log.name, logging.INFO, __file__, 0, text, (), None)
    for handler in logging.getLogger("kdrun").handlers:
        if line.levelno >= handler.level:
            handler.handle(line)
