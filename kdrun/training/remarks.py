"""What a run is told to do and what will come of nothing: warnings for its log and its record."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from kdrun.core.ranks import launch_line
from kdrun.core.world import world
from kdrun.teachers.tip_adapter import AdapterConfig
from kdrun.training.assembly import Assembly
from kdrun.training.rates import LearningRate

FEW = 30
"""Test images below which a figure says little: of one half, one standard deviation is 9 points."""


def remarks(assembly: Assembly) -> list[str]:
    """One line for each."""
    return [
        *assembly.arrays.warnings, *_of_classes(assembly), *_of_validation(assembly), *_of_schedule(assembly),
        *_of_heads(assembly), *_of_new_heads(assembly), *_of_search(assembly), *_of_devices(assembly),
    ]  # fmt: skip


def _of_classes(assembly: Assembly) -> list[str]:
    arrays, split = assembly.arrays, assembly.split
    known = arrays.train_labels[arrays.train_labels >= 0]
    images = np.bincount(known, minlength=arrays.num_classes)
    labeled = np.bincount(arrays.train_labels[split.labeled], minlength=arrays.num_classes)
    out = []
    if len(empty := np.flatnonzero(images == 0)):
        out.append(f"{len(empty)} of {arrays.num_classes} classes have no training image: {_names(assembly, empty)}")
    if len(bare := np.flatnonzero((labeled == 0) & (images > 0))):
        out.append(f"{len(bare)} of {arrays.num_classes} classes have no labeled image: {_names(assembly, bare)}")
    return out


def _names(assembly: Assembly, classes: Iterable[int]) -> str:
    names = [assembly.arrays.class_names[k] for k in classes]
    return ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")


def results_remarks(metrics: Mapping[str, float], headline: str, classes: int, images: Mapping[str, int]) -> list[str]:
    """What a finished run's figures cannot tell: of a test set of a few images, and those of chance.

    Chance: within two standard deviations of 1 / `classes`, as of guesses, where there are `FEW` images or more.

    Args:
        images: of each split.
    """
    count, split = images.get("test", 0), "test"
    out = []
    if 0 < count < FEW:
        one = f"one is {100 / count:.2g} points of accuracy"
        out.append(
            f"{count} test images are too few to compare anything, {one}; dataset.test_fraction=0.2, or more photos"
        )
        split = "val"
    count, chance = images.get(split, 0), 1 / classes
    top1 = metrics.get(f"{split}/{headline}/top1")
    if top1 is not None and count >= FEW and top1 < chance + 2 * math.sqrt(chance * (1 - chance) / count):
        out.append(
            f"{headline}: {100 * top1:.1f} % of {count} {split} images are right, guessing gives {100 * chance:.1f} %: "
            "it has not learned; train longer (schedule.steps=2000), try another schedule.lr, look at kdrun plot images"
        )
    return out


def _of_validation(assembly: Assembly) -> list[str]:
    fraction = assembly.config.dataset.val_fraction
    if len(assembly.split.val) or not fraction or assembly.config.dataset.split_file is not None:
        return []
    return [f"dataset.val_fraction: {fraction:g} of so few training images is none: nothing is validated"]


def _of_schedule(assembly: Assembly) -> list[str]:
    schedule, clock = assembly.config.schedule, assembly.clock
    if not assembly.config.needs.trains or assembly.config.debug.on:
        return []
    out = []
    warmup = clock.steps(schedule.warmup_steps, schedule.warmup_epochs)
    if warmup is not None and warmup >= clock.total_steps:
        out.append(f"schedule: the warm-up of {warmup} steps is as long as the run, of {clock.total_steps}")
    factor = LearningRate(schedule, clock).factor
    if schedule.decay.name == "step" and factor(clock.total_steps - 1) == 1:
        out.append(f"schedule.decay: no milestone comes within the {clock.total_steps} steps of the run")
    every = clock.steps(schedule.eval_every_steps, schedule.eval_every_epochs)
    if every is not None and every > clock.total_steps:
        out.append(
            f"schedule: an evaluation every {every} steps comes only at the end of a run of {clock.total_steps} steps"
        )
    return out


def _of_search(assembly: Assembly) -> list[str]:
    spec = assembly.config.method
    return spec.remarks if isinstance(spec, AdapterConfig) else []


def _of_devices(assembly: Assembly) -> list[str]:
    config, count = assembly.config, world().size
    devices, arguments = config.execution.devices, assembly.job.overrides
    if devices in (None, count) or not config.needs.trains:
        return []
    how = f", as {launch_line(devices, arguments)}" if arguments else ""  # of what another run needs, nothing is known
    return [
        f"execution.devices: its recipe was made with {devices} processes{how}; this run has {count}, and the same "
        "batch of all"
    ]


def _of_heads(assembly: Assembly) -> list[str]:
    """Who distills into a network with a head for labels and one for the teacher might think that each has its own."""
    return [
        f"{name}: {network.name} has {network.num_heads} classifiers; it gives one answer made of all of them, in "
        "training too, so every loss trains them all"
        for name, network in assembly.method.networks().items()
        if network.num_heads > 1
    ]


def _of_new_heads(assembly: Assembly) -> list[str]:
    """A new classifier whose weights are large for its inputs: its gradient spoils published weights first."""
    out = []
    for name, network in assembly.method.networks().items():
        largest = network.large_new_head
        if largest is not None and assembly.config.needs.trains:
            out.append(
                f"{name}: {network.name} has published weights under a new classifier of random weights up to "
                f"{largest:.2f}, whose gradient spoils them at first; student.zero_head=true begins at zero"
            )
    return out
