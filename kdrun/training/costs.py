"""What a run will take, told from operations before it begins: threads, and the share of its evaluations."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch

from kdrun.core.device import eager
from kdrun.models.flops import flops_of, operations
from kdrun.training.assembly import Assembly

log = logging.getLogger(__name__)
WORTH = 0.05  # share of a run from which on it is said
BACKWARD = 3  # a forward pass with its backward pass, in forward passes
GRAIN = 1e9  # operations of a step for each thread: with fewer, a second one gains little (docs/performance.md)


@dataclass(frozen=True)
class Operations:
    """Of the networks of a run; None: they cannot be counted, or nothing is trained."""

    students: int | None
    """Of a forward pass of all of them over one image."""
    teacher: int | None
    """Of one over one image; 0: there is no teacher."""
    step: int | None
    """Of a training step: `BACKWARD` forward passes of all students for each view of each image, and one of a teacher
    that is asked."""

    @classmethod
    def of(cls, assembly: Assembly) -> Self:
        config = assembly.config
        if not config.needs.trains:
            return cls(None, None, None)
        counted = [flops_of(network, assembly.size) for network in assembly.method.networks().values()]
        students = None if None in counted else sum(flops for flops in counted if flops is not None)
        teacher = _teacher(assembly)
        if students is None or teacher is None:
            return cls(students, teacher, None)
        sizes = config.method_class.batch_sizes(config)
        views = sum(sizes[stream] * len(views) for stream, views in config.needs.streams.items())
        asked = 0 if assembly.stored is not None else teacher * sum(sizes.values())
        return cls(students, teacher, BACKWARD * students * views + asked)


def fitting_threads(assembly: Assembly, most: int, operations: Operations) -> int:
    """Threads of torch on the CPU that a run gains by, of `most` that its slot has. All of them where it trains on
    another device, trains nothing, or where operations cannot be counted."""
    if assembly.device.type != "cpu" or operations.step is None:
        return most
    return max(1, min(most, int(operations.step / GRAIN)))


def evaluation_cost(assembly: Assembly, operations: Operations) -> str | None:
    """A line about it; None: it is small, nothing is trained, or operations cannot be counted.

    Counted are, beside the training steps, all students on all validation and test images, twice where there is an
    average of weights, and the teacher on these once.
    """
    config, clock = assembly.config, assembly.clock
    one, teacher, step = operations.students, operations.teacher, operations.step
    if one is None or teacher is None or step is None:
        return None
    counts = {split: len(index) for split, (_, index, _) in assembly.evaluator.splits.items()}
    times, passes = config.schedule.evaluations(clock), 1 if config.schedule.ema_decay is None else 2
    spent = sum(counts.values()) * (times * passes * one + teacher)
    share = spent / max(spent + clock.total_steps * step, 1)
    if share <= WORTH:
        return None
    images = " and ".join(f"{count} {split} images" for split, count in counts.items())
    what = f"{times} evaluation{'s' if times > 1 else ''} of {images}"
    what += ", of live and of averaged weights" if passes == 2 else ""
    return f"evaluation: about {100 * share:.0f} % of the run by operations: {what}; {_remedy(assembly, times)}"


def _remedy(assembly: Assembly, times: int) -> str:
    schedule = assembly.config.schedule
    for key, every in (("steps", schedule.eval_every_steps), ("epochs", schedule.eval_every_epochs)):
        if every is not None and times > 1:
            return f"fewer with a schedule.eval_every_{key} above {every:g}"
    return f"that is the one at the end, beside {assembly.clock.total_steps} steps"


def _teacher(assembly: Assembly) -> int | None:
    """Of a forward pass over one image, which the network is shown; 0: there is no teacher. None: it cannot be said."""
    if assembly.teacher is None:
        return 0
    shape = (1, assembly.factory.in_chans, *assembly.size)
    pixels = torch.zeros(shape, dtype=torch.uint8, device=assembly.device)
    try:
        with eager() if assembly.config.schedule.compile is not None else nullcontext():
            return operations(assembly.teacher.network, pixels)
    except Exception as error:  # networks of others raise many kinds
        log.debug("%s: its operations cannot be counted (%s)", assembly.teacher.name, error)
        return None
