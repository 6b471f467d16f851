"""One run by several processes, as torchrun or srun started them: each composes and checks it, then they join.

Rank 0 says and writes what one process would; of the others only what they alone know is heard.
"""

import contextlib
import hashlib
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from kdrun.cli.plan import Plan
from kdrun.config.job import Job
from kdrun.core import signals
from kdrun.core.errors import KdrunError
from kdrun.core.later import later
from kdrun.core.peers import RankFailed
from kdrun.core.ranks import Launch, NoRank0
from kdrun.core.slot import Slot, occupied

if TYPE_CHECKING:
    import torch

    from kdrun.core.device import device_of
    from kdrun.core.joining import Facts, agree, disband, gpu_of, join, reach
    from kdrun.core.watch import Watch
    from kdrun.core.world import World, enter
    from kdrun.training.runner import run
else:
    torch = later("torch")
    device_of = later("kdrun.core.device", "device_of")
    Facts, agree, disband = later("kdrun.core.joining", "Facts", "agree", "disband")
    gpu_of, join, reach = later("kdrun.core.joining", "gpu_of", "join", "reach")
    Watch = later("kdrun.core.watch", "Watch")
    World, enter = later("kdrun.core.world", "World", "enter")
    run = later("kdrun.training.runner", "run")

log = logging.getLogger(__name__)
SECONDS = 30.0
"""To join in, where nothing was composed that would say."""
LATER = 3.0
"""Seconds that rank 0 has to say what another one would."""


def over_ranks(
    launch: Launch, arguments: Sequence[str], planned: Callable[[], Plan | None], lead: Callable[[Plan | None], int]
) -> int:
    """Make the run of a command line together with the other ranks. Returns the exit code, alike on all of them.

    Args:
        planned: composes and checks; None: only Hydra knows what to do.
        lead: carries that out on rank 0, and returns the exit code.

    Raises:
        Interrupted: stopped by a signal, on rank 0; the others return the code.
    """
    # before torch loads: its sockets complain at length, and raise as well
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if not launch.first:
        warnings.simplefilter("ignore")  # rank 0 shows them
    try:
        with occupied(Slot(index=launch.local_rank, threads=launch.threads)), _Asides(launch.rank) as asides:
            return _over_ranks(launch, arguments, planned, lead, asides)
    except KeyboardInterrupt as stop:
        if launch.first:
            raise
        return _code_of(stop)


def _over_ranks(
    launch: Launch, arguments: Sequence[str], planned: Callable[[], Plan | None], lead: Callable[[Plan | None], int],
    asides: "_Asides",
) -> int:  # fmt: skip
    plan, mistakes = None, []
    enter(World(launch.rank, launch.size))  # checks ask how many there are
    try:
        plan = planned()
        if plan is None:
            return lead(None) if launch.first else 0
    except KdrunError as error:
        mistakes = str(error).splitlines()
    finally:
        enter(World())
    try:
        here = _joined(launch, plan, mistakes, arguments)
    except KdrunError as error:
        told = launch.first or isinstance(error, NoRank0)
        for line in (mistakes or str(error).splitlines()) if told else ():
            print(f"error: {line}", file=sys.stderr)
        return 2
    asides.join(here)
    make = partial(lead, plan) if launch.first or plan is None else partial(_follow, *plan.jobs)
    return _together(here, make, asides.tell)


def _joined(launch: Launch, plan: Plan | None, mistakes: Sequence[str], arguments: Sequence[str]) -> World:
    """Raises KdrunError: the ranks cannot make one run. NoRank0: whoever finds it tells."""
    seconds, device, own = SECONDS, torch.device("cpu"), Facts(mistakes, tuple(arguments))
    if plan is not None:
        (job,) = plan.jobs
        execution = job.config.execution
        seconds, device = execution.join_seconds, device_of(execution.device)
        gpus = torch.cuda.device_count() if device.type == "cuda" else 0
        own = Facts(mistakes, tuple(arguments), job.key, device.type, gpu_of(device), gpus)
    end = time.monotonic() + seconds
    store = reach(launch, seconds)
    known = agree(launch, store, own, seconds, end)
    return join(launch, store, known, device, max(end - time.monotonic(), 1.0))


def _together(here: World, make: Callable[[], int], tell: Callable[[float], None]) -> int:
    """Args:
    make: this rank's part; returns the exit code.
    tell: says what rank 0 has not said in so many seconds.
    """
    watch, code = Watch(here, partial(tell, LATER)), 1
    enter(here)
    signals.among_ranks()
    watch.start()
    try:
        code = make()
    except KeyboardInterrupt as stop:
        code = _code_of(stop)
        with contextlib.suppress(RuntimeError):  # the store is gone, with whoever kept it
            here.say_stopped()
        raise
    except Exception as error:
        here.fail(error)
        raise
    finally:
        signals.ignore()
        if code and not here.first and (failed := here.failure()) is not None and here.speaks_of(failed):
            print(f"error: {RankFailed(failed)}", file=sys.stderr)
        watch.stop()
        with contextlib.suppress(RuntimeError):
            tell(0.0)
        code = here.leave(code)
        enter(World())
    if not code:
        disband()
    return code


def _code_of(stop: KeyboardInterrupt) -> int:
    return 128 + (stop.number if isinstance(stop, signals.Interrupted) else signal.SIGINT)


def _follow(job: Job) -> int:
    """The run as another rank than the first makes it: what goes wrong, rank 0 is told, and tells."""
    try:
        return int(run(job)["status"] != "done")
    except Exception as error:
        log.debug("%s", error, exc_info=True)
        return 1


class _Asides(logging.Handler):
    """What several ranks warn of is said once, by rank 0; the others say what it does not, a little later."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.WARNING)
        self.rank = rank
        self._store: Any = None
        self._kept: list[tuple[float, str]] = []

    def __enter__(self) -> Self:
        logger = logging.getLogger("kdrun")
        logger.addHandler(self)
        self._before = logger.level, logger.propagate
        if self.rank:
            logger.setLevel(logging.WARNING)
            logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("kdrun")
        logger.removeHandler(self)
        logger.setLevel(self._before[0])
        logger.propagate = self._before[1]

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((time.monotonic(), record.getMessage()))

    def join(self, here: World) -> None:
        """From now on rank 0 can be asked what it has said."""
        self._store = here.store

    def tell(self, since: float) -> None:
        """Say what is older than that."""
        while self._kept and (not self.rank or time.monotonic() - self._kept[0][0] > since):
            _, text = self._kept.pop(0)
            key = f"said/{hashlib.sha256(text.encode()).hexdigest()}"
            if not self.rank:
                self._store.set(key, "")
            elif not self._store.check([key]):
                print(f"rank {self.rank}: {text}", file=sys.stderr, flush=True)
