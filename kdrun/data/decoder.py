"""Processes that decode the image files of coming batches."""

import atexit
import contextlib
import signal
import warnings
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch.utils.data import DataLoader, Dataset

from kdrun.core.signals import ENDING
from kdrun.data.stream import Decoded, Stream


class Steps(Dataset[dict[str, Decoded]]):
    """What workers do: item k is the decoded files of step k of every stream."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self.streams = dict(streams)

    def __getitem__(self, step: int) -> dict[str, Decoded]:
        return {name: stream.decode(step) for name, stream in self.streams.items()}


class Decoder:
    """The decoded files of one step after the other, by worker processes, pinned where the training device is CUDA.

    Workers end with `close`, and by themselves when the run's process is gone.
    """

    def __init__(self, streams: Mapping[str, Stream], workers: int, total_steps: int | None) -> None:
        # A copy without what workers have no use for: they are forked or sent it.
        self._steps = Steps({name: stream.for_workers() for name, stream in streams.items()})
        self._workers = workers
        self._last = total_steps
        self._pin = any(stream.device.type == "cuda" for stream in streams.values())
        self._next: int | None = None
        self._made: Iterator[dict[str, Decoded]] | None = None

    def step(self, step: int) -> dict[str, Decoded]:
        """Steps are asked for in order, or the workers begin anew."""
        if not self._workers or (self._last is not None and step >= self._last):
            return self._steps[step]
        if self._made is None or self._next != step:
            self.close()
            self._made = self._begin(step)
        self._next = step + 1
        return next(self._made)

    def _begin(self, step: int) -> Iterator[dict[str, Decoded]]:
        last = self._last if self._last is not None else step + ENDLESS
        loader = DataLoader(
            self._steps, batch_size=None, sampler=range(step, last), num_workers=self._workers, pin_memory=self._pin,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # else a number of torch's global generator would be used up
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # as any loader
            made = iter(loader)
        atexit.register(_kill, weakref.ref(made))  # Python would ask them to end by SIGTERM, and wait
        return made

    def close(self) -> None:
        """Ends the workers."""
        made, self._made = self._made, None
        if made is not None:
            made._shutdown_workers()  # type: ignore[attr-defined]  # a reference in a traceback would keep them alive
            _kill(weakref.ref(made))


def _kill(made: "weakref.ref[Iterator[dict[str, Decoded]]]") -> None:
    """End workers that still hang, in a file system that does not answer say."""
    for worker in getattr(made(), "_workers", ()):
        with contextlib.suppress(ValueError):  # it is closed
            worker.kill()


ENDLESS = 1 << 40  # steps


def _as_it_is(item: dict[str, Decoded]) -> dict[str, Decoded]:
    return item


def _ignore_signals(worker: int) -> None:
    # Ctrl-C reaches all processes of a terminal, other signals all of a SLURM step or of timeout(1)'s group: the run
    # finishes its step, which needs the workers, and ends them.
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
