"""The processes that make one run together, its ranks; every call is cheap, and does nothing, where there is one.

A batch belongs to all ranks: rank r has its r-th part, rows r n .. (r + 1) n of W n. What is `gathered` stands in the
order of the ranks, so it is the batch as one process would have it.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from kdrun.core import signals
from kdrun.core.errors import KdrunError
from kdrun.core.peers import Peers, Process

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One of equal parts of a batch, in its order."""

    index: int = 0
    count: int = 1

    def rows(self, total: int) -> slice:
        """Of a batch of `total` images. Raises KdrunError where it does not divide."""
        if total % self.count:
            raise KdrunError(f"a batch of {total} images has no {self.count} equal parts")
        size = total // self.count
        return slice(self.index * size, (self.index + 1) * size)

    def part(self, index: int, count: int) -> "Part":
        """The index-th of `count` equal parts of this part."""
        return Part(self.index * count + index, self.count * count)


class World(Peers):
    """The ranks of a run; see `Peers` for its arguments."""

    def __init__(
        self, rank: int = 0, size: int = 1, store: Any = None, processes: Mapping[int, Process] | None = None
    ) -> None:
        super().__init__(rank, size, store, processes)
        self._asked = 0  # how often `once` was called: each time has a key of its own
        self._said: tuple[Any, Tensor] | None = None  # what `lately` has under way

    @property
    def part(self) -> Part:
        """This rank's part of every batch."""
        return Part(self.rank, self.size)

    # -- tensors, of the same shape on all ranks

    def gathered(self, own: Tensor) -> Tensor:
        """(n, ...) -> (W n, ...), the rows of all ranks.

        A loss of it that all ranks compute alike, whose gradients are averaged over the ranks as DDP does, has the
        gradient that it would have in one process.
        """
        return own if self.size == 1 else _Gathered.apply(own, self.rank, self.size)

    @torch.no_grad()
    def mean(self, own: Tensor) -> Tensor:
        """The mean over ranks, without gradient."""
        if self.size == 1:
            return own
        total = own.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor | None]) -> None:
        """Each of the tensors becomes its mean over ranks, in place; None on one rank is None on all."""
        given = [tensor for tensor in tensors if tensor is not None]
        if self.size == 1 or not given:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in given):
            same = [tensor for tensor in given if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in same])
            dist.all_reduce(flat)
            flat /= self.size
            parts = flat.split([tensor.numel() for tensor in same])
            torch._foreach_copy_(same, [part.view_as(tensor) for part, tensor in zip(parts, same, strict=True)])

    @torch.no_grad()
    def share(self, tensors: Sequence[Tensor]) -> None:
        """Each of the tensors becomes that of rank 0, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            bits = _sent(tensor)
            dist.broadcast(bits, 0)
            tensor.copy_(bits)

    @torch.no_grad()
    def collected(self, own: Tensor) -> list[Tensor]:
        """Of each rank its tensor, (n_r, ...): these may differ in their first dimension."""
        if self.size == 1:
            return [own]
        count = torch.tensor([len(own)], device=own.device)
        counts = [int(c) for c in torch.cat(_all(count, self.size)).tolist()]
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: len(own)] = own.detach()
        return [values[:n] for values, n in zip(_all(padded, self.size), counts, strict=True)]

    # -- decisions, by the host

    def once(self, act: Callable[[], T]) -> T:
        """What rank 0 gets from `act`, which only it calls; however long that takes. What it raises is raised by all.

        Inside, `world()` is that of one process. The result is pickled for the other ranks.
        """
        if self.store is None:
            return act()
        key, self._asked = f"once/{self._asked}", self._asked + 1
        if self.first:
            try:
                with alone(self.first):
                    result = act()
            except BaseException as error:
                self.store.set(key, pickle.dumps((False, _portable(error))))
                raise
            self.store.set(key, pickle.dumps((True, result)))
            return result
        fine, result = pickle.loads(self.wait(key))  # of our own rank 0
        if not fine:
            raise result
        return result

    def first_then(self, act: Callable[[], T]) -> T:
        """`act` on rank 0, then on the others, which find what it has left on disk. What rank 0 raises is raised by
        all. Inside, `world()` is that of one process."""
        if self.size == 1:
            return act()
        done: list[T] = []

        def as_first() -> None:
            done.append(act())

        self.once(as_first)
        if done:
            return done[0]
        with alone(self.first):
            return act()

    def lately(self, *here: int) -> tuple[int, ...]:
        """Of each number the largest that a rank gave when this was called the last time, so that nobody waits for
        the others; 0 at first. One process: what it gives."""
        if self.size == 1:
            return here
        before = self._said
        numbers = torch.tensor(here)
        self._said = dist.all_reduce(numbers, dist.ReduceOp.MAX, async_op=True), numbers
        if before is None:
            return (0,) * len(here)
        before[0].wait()
        return tuple(before[1].tolist())

    def poll(self, sure: bool = False) -> None:
        """As `signals.poll`, at the same place on all ranks: one call after a signal came to any of them.

        Args:
            sure: at this very call. The ranks wait for each other.
        """
        if self.size == 1:
            return signals.poll()
        number = max(self._polled() for _ in range(1 + sure))
        return self.stop(number)

    def stop(self, number: int) -> None:
        """`signals.poll`, of a signal (0: none) that all ranks know of; in one process of what came to it."""
        if self.size == 1:
            return signals.poll()
        if number:
            signals.note(number)
            signals.poll()
        return None

    def _polled(self) -> int:
        return self.lately(signals.received() or 0, 0)[0]


class _Gathered(torch.autograd.Function):
    """All ranks' rows; of the gradient, this rank's rows times the number of ranks, which averaging divides by."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size, ctx.rows = rank, size, len(own)
        return torch.cat(_all(own, size))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows] * ctx.size, None, None


def _all(own: Tensor, size: int) -> list[Tensor]:
    bits = _sent(own)
    parts = [torch.empty_like(bits) for _ in range(size)]
    dist.all_gather(parts, bits)
    return [part.to(own.dtype) for part in parts]


def _sent(tensor: Tensor) -> Tensor:
    """As ranks exchange it: gloo knows no bool."""
    whole = tensor.detach().contiguous()
    return whole.to(torch.uint8) if whole.dtype == torch.bool else whole


def _portable(error: BaseException) -> BaseException:
    """The error as other ranks can raise it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class makes of it
        return KdrunError(f"rank 0: {type(error).__name__}: {error}")
    return error


_HERE = [World()]


@contextmanager
def alone(first: bool = True) -> Iterator[None]:
    """Inside, this process asks nobody else: it acts for all, or after the first one, or tries shapes.

    Args:
        first: whether it writes, logs and decides.
    """
    one = World()
    one.first = first
    _HERE.append(one)
    try:
        yield
    finally:
        _HERE.pop()


def world() -> World:
    """The ranks of the run that this process makes."""
    return _HERE[-1]


def enter(other: World) -> None:
    """From now on this process is one of these."""
    _HERE[:] = [other]
