"""A line now and again on stderr, where something takes long."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
FIRST, NEXT = 4.0, 15.0
"""Seconds until the first line, and between the others."""


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """The same items, one after the other; `table=ttm_same: composing cells, 60 of 112, about 5 s left` meanwhile."""
    begun = due = 0.0
    for done, item in enumerate(items):
        now = time.monotonic()
        if done == 1:  # the first one has imported what all of them need
            begun, due = now, now + FIRST
        if done > 1 and now >= due:
            left = (now - begun) / (done - 1) * (len(items) - done)
            print(f"{what}, {done} of {len(items)}, about {left:.0f} s left", file=sys.stderr, flush=True)
            due = now + NEXT
        yield item
