"""A whole step as one CUDA graph: views, teacher, student, losses, backward pass, optimizer and averages.

What the host decides of a step (positions, drawn numbers, learning rates) lies in memory of the device that is refilled
before each step by one copy; the step itself is a function of it that never asks the host. The first steps of a process
are taken uncaptured, as real steps of training: they set up what libraries and the optimizer keep. Then the step is
captured once, and replayed. Without CUDA the same function runs uncaptured on the same memory.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdrun.core.device import send
from kdrun.core.errors import KdrunError
from kdrun.data.loader import Loader
from kdrun.data.stream import Drawn
from kdrun.data.views.view import Batch, mapped
from kdrun.methods.step import Context
from kdrun.training.tape import Tape, Told
from kdrun.training.waiting import nothing_waits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """All that the host gives to a step."""

    drawn: dict[str, Drawn]
    told: Told
    rates: Tensor
    """(G,) float32, the learning rate of each group of parameters."""


class CapturedStep:
    """The steps of a run, each a function of what the host gives it.

    Args:
        work: a step, on a batch: the logged values (n,), on the device.
        watched: whether the first step is looked at for what cannot be captured; a compiled network does not bear it,
            and CUDA tells at the capture.
    """

    UNCAPTURED = 3  # steps before the capture

    def __init__(
        self, work: Callable[[Batch, Context], Tensor], loader: Loader, optimizer: torch.optim.Optimizer, tape: Tape,
        watched: bool = True,
    ) -> None:  # fmt: skip
        self._work = work
        self._loader = loader
        self._tape = tape
        self._device = device = tape.device
        self._watched = watched
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        self._buffers: Buffers | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: Tensor | None = None
        self._done = 0  # steps of this process
        if self._stream is None:
            log.info("schedule.graph: without CUDA each step runs uncaptured, which gains nothing")

    def __call__(
        self, step: int, drawn: dict[str, Drawn], rates: Sequence[float], factors: Mapping[str, float]
    ) -> Tensor:
        """Take a step; its logged values.

        Args:
            drawn: of `Loader.drawn`.
            rates: the learning rate of each group of parameters.
            factors: on the weights that move, by their keys.
        """
        given = Given(drawn, self._tape.told(step, factors), torch.tensor(rates, dtype=torch.float32))
        self._done += 1
        if self._buffers is None:
            values = self._aside(partial(self._first, step, mapped(partial(send, device=self._device), given)))
            self._buffers = Buffers(replace(given, told=self._tape.told(step, factors)), self._device)
            return values
        self._buffers.fill(given)
        if self._stream is None or self._done <= self.UNCAPTURED:
            return self._aside(partial(self._take, self._buffers.tree))
        if self._graph is None:
            self._capture(self._buffers.tree)
        if self._graph is None or self._out is None:
            raise KdrunError("a step was to be captured, and is not")
        self._graph.replay()
        return self._out.clone()

    def _first(self, step: int, given: Given) -> Tensor:
        with nothing_waits(self._tape.refusal) if self._watched else nullcontext():
            return self._take(given, step)

    def _take(self, given: Given, recorded: int | None = None) -> Tensor:
        """The function that is captured."""
        torch._foreach_copy_(self._rates, list(given.rates.unbind()))
        return self._work(self._loader.made(given.drawn), self._tape.context(given.told, recorded))

    def _aside(self, work: Callable[[], Tensor]) -> Tensor:
        """Uncaptured, on the stream of the capture, so that what libraries keep for each stream is there."""
        if self._stream is None:
            return work()
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # it will be
                values = work()
            current.wait_stream(self._stream)
            return values.clone()  # in memory of the stream that reads it

    def _capture(self, given: Given) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads, that of the views say, may do meanwhile what they like
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._out = self._take(given)
        except RuntimeError as error:
            told = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise self._tape.refusal(f"has a step that cannot be captured ({told})") from error
        self._graph = graph
        log.info("schedule.graph: step captured as one CUDA graph")


class Buffers:
    """Memory on the device for all tensors of a tree, which one copy fills.

    On CUDA two pieces of pinned memory take turns, so that the host writes one while the other is on its way; it waits
    where the device is two steps behind.

    Args:
        tree: as of `mapped`, on the CPU: what shapes there are.
    """

    ALIGNED = 64  # bytes; a tensor begins at a multiple

    def __init__(self, tree: Any, device: torch.device) -> None:
        found = _leaves(tree)
        self._ends = _ends(found)
        size = self._ends[-1] if self._ends else 0
        memory = torch.empty(size, dtype=torch.uint8, device=device)
        views = self._views(memory, found)
        self._memory = memory
        given = iter(views)
        self.tree = mapped(lambda _: next(given), tree)
        """The same tree on the device; its tensors stay where they are."""
        self._stages: list[tuple[Tensor, list[Tensor], torch.cuda.Event | None]] = [(memory, views, None)]
        if device.type == "cuda":
            pinned = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._stages = [(stage, self._views(stage, found), torch.cuda.Event()) for stage in pinned]

    def fill(self, tree: Any) -> None:
        """Put the tensors of a tree, on the CPU, into the place of those that are there."""
        stage, views, sent = self._stages[0]
        self._stages = self._stages[1:] + self._stages[:1]
        if sent is not None:
            sent.synchronize()  # of two fills ago
        for view, value in zip(views, _leaves(tree), strict=True):
            if view.shape != value.shape or view.dtype != value.dtype:
                raise KdrunError(f"schedule.graph: a step has {_told(value)} where the first one had {_told(view)}")
            view.copy_(value)
        if sent is not None:
            self._memory.copy_(stage, non_blocking=True)
            sent.record(torch.cuda.current_stream(self._memory.device))

    def _views(self, memory: Tensor, like: list[Tensor]) -> list[Tensor]:
        starts = [0, *self._ends][: len(like)]
        return [
            memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(starts, like, strict=True)
        ]


def _ends(tensors: Sequence[Tensor]) -> list[int]:
    out, at = [], 0
    for tensor in tensors:
        at += -(-tensor.nbytes // Buffers.ALIGNED) * Buffers.ALIGNED
        out.append(at)
    return out


def _leaves(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def kept(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(kept, tree)
    return found


def _told(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}".replace("torch.", "")
