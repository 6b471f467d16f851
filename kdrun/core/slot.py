"""What of a machine one run may use, where several share it: a device, threads, a share of the device's memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One place of an engine, in which one run at a time is made."""

    number: int = 0
    gpu: str | None = None
    """As CUDA_VISIBLE_DEVICES names it; None: whatever the process sees."""
    index: int | None = None
    """Which of the GPUs that the process sees, for `execution.device=auto`; None: the first."""
    threads: int | None = None
    """Of torch on the CPU; None: torch's choice. `execution.threads` wins."""
    share: float = 1.0
    """Of a device, what is left to other runs on it."""


WHOLE = Slot()
_HERE = [WHOLE]


def slot() -> Slot:
    """The one that this process, or its current run, works in."""
    return _HERE[-1]


@contextmanager
def occupied(place: Slot) -> Iterator[None]:
    """Runs inside this context work in that slot. A GPU can be chosen only before CUDA has started."""
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    _HERE.append(place)
    try:
        yield
    finally:
        _HERE.pop()
