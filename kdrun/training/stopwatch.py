"""What the seconds of a run go to."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Literal


class Stopwatch:
    """What a session spends its time on.

    Args:
        before: seconds of the sessions before it.
    """

    def __init__(self, before: Mapping[str, float]) -> None:
        self.before = dict(before)
        self.spent = {"data": 0.0, "eval": 0.0}
        self.began = self.at = time.perf_counter()

    @contextlib.contextmanager
    def on(self, what: Literal["data", "eval"]) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Of all sessions: total, and the parts train, data and eval that it is made of."""
        total = time.perf_counter() - self.began
        spent = {"total": total, "train": total - sum(self.spent.values()), **self.spent}
        return {name: self.before[name] + value for name, value in spent.items()}

    def without_evaluation(self) -> float:
        """Seconds of this session but those of its evaluations."""
        return time.perf_counter() - self.began - self.spent["eval"]

    def elapsed(self) -> float:
        """Since the last `mark`."""
        return time.perf_counter() - self.at

    def mark(self) -> None:
        self.at = time.perf_counter()
