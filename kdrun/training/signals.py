"""Signals that stop a run between two steps."""

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop reads between steps; a second Ctrl-C stops now."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
