"""What is looked up on a disk again and again: anew where that is cheap, remembered for a while where it is not."""

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
CHEAP = 0.05  # seconds
SHARE = 0.05  # of the time that passes may go into looking again
MOST = 8  # values that are kept


class Remembered(Generic[K, V]):
    """Values by key. One that took t seconds, more than `CHEAP`, is taken as it was for t / `SHARE` seconds."""

    def __init__(self) -> None:
        self._kept: dict[K, tuple[float, V]] = {}  # until when, value

    def value(self, key: K, look: Callable[[], V]) -> V:
        """What `look` gives; what it raises is not remembered."""
        began = time.monotonic()
        kept = self._kept.pop(key, None)
        if kept is None or kept[0] <= began:
            found = look()
            took = time.monotonic() - began
            kept = (began + took / SHARE if took > CHEAP else began, found)
        self._kept[key] = kept  # at the end: the first one has not been asked for the longest
        while len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]
        return kept[1]
