"""Several processes that make one run, as a launcher starts them; and what may happen to one of them."""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any

from tests.processes import Forked

PLACES = {"a step": ("_optimize", 7), "an early step": ("_optimize", 3), "an evaluation": ("_logits", 1)}


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """As torchrun sets it."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _fault(what: str) -> None:
    if what == "raises":
        raise ValueError("broken on purpose")
    os.kill(os.getpid(), signal.Signals[what])


def as_rank(given: dict[str, str], what: str, place: str, *words: str) -> int:
    """The command line in one rank; `what` happens to it at the place: it raises, or it is sent a signal."""
    from kdrun.cli.train import main
    from kdrun.training.loop import Loop

    os.environ.update(given)
    if what:
        name, times = PLACES[place]
        plain: Callable[..., Any] = getattr(Loop, name)
        calls = [0]

        def broken(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == times:
                _fault(what)
            return plain(*arguments, **options)

        setattr(Loop, name, broken)
    return main(list(words))


class Ranks:
    """Processes of one run.

    Args:
        faults: rank -> (what, place), see `as_rank`.
        own: rank -> words of its own.
    """

    def __init__(
        self, size: int, *words: str, faults: dict[int, tuple[str, str]] | None = None,
        own: dict[int, list[str]] | None = None,
    ) -> None:  # fmt: skip
        port = free_port()
        self.processes = [
            Forked(
                as_rank, environment(rank, size, port), *(faults or {}).get(rank, ("", "")), *words,
                *(own or {}).get(rank, []),
            )
            for rank in range(size)
        ]  # fmt: skip

    def wait(self, seconds: float = 60) -> list[int]:
        """Their exit codes."""
        return [process.wait(seconds) for process in self.processes]

    @property
    def texts(self) -> list[str]:
        return [process.text for process in self.processes]
