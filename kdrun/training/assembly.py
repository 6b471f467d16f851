"""The parts of a run that follow from its configuration and its data, for whoever trains or opens it again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.data.arrays import Arrays
from kdrun.data.splits import Split, make_split
from kdrun.data.views.center import Center
from kdrun.data.views.recipes import Crop, FileCrop, Strong, Weak
from kdrun.data.views.view import Recipe
from kdrun.methods.method import Method
from kdrun.methods.requires import head_warmup_runs
from kdrun.methods.step import Setup
from kdrun.models.factory import for_channels


def split_of(config: RunConfig, arrays: Arrays) -> Split:
    """Which images are labeled, unlabeled and for validation."""
    return make_split(config, arrays.train_labels, arrays.num_classes, len(arrays.test_labels), arrays.val)


def fitted(config: RunConfig, split: Split) -> RunConfig:
    """With the batch size that this split allows, see `schedule.repeat_labeled`."""
    schedule = config.schedule
    if schedule.repeat_labeled or len(split.labeled) >= schedule.batch_size:
        return config
    return config.replace(schedule=schedule.replace(batch_size=len(split.labeled)))


def recipes_of(config: RunConfig, arrays: Arrays) -> dict[str, Recipe]:
    """The views that a method may ask for, for images of this size."""
    size, mirror = _size(arrays), config.dataset.mirror
    weak: Weak | Crop = Weak.of(config.views.weak, size, mirror)
    if config.views.weak.scale is not None:
        weak = (Crop if arrays.files is None else FileCrop).of(config.views, size, mirror)
    return {"weak": weak, "strong": Strong.of(config.views.strong, weak, view_size(config, arrays))}


def center_of(config: RunConfig, arrays: Arrays) -> Center | None:
    """What networks see of an image in evaluation; None: all of it."""
    return Center.of(config.views, _size(arrays))


def view_size(config: RunConfig, arrays: Arrays) -> tuple[int, int]:
    """Height and width of what networks see."""
    center = center_of(config, arrays)
    return _size(arrays) if center is None else (center.size, center.size)


def _size(arrays: Arrays) -> tuple[int, int]:
    return arrays.train_images.shape[1], arrays.train_images.shape[2]


def setup_of(config: RunConfig, arrays: Arrays, split: Split) -> Setup:
    """What networks and terms are built from. Pixels are normalised by the dataset's keys, else the recipe of views."""
    in_chans = arrays.train_images.shape[-1]
    mean, std = arrays.mean, arrays.std  # the dataset's own, or what `dataset.mean` and `dataset.std` give
    if config.views.mean is not None and config.dataset.mean is None:
        mean = tuple(for_channels(config.views.mean, in_chans))
    if config.views.std is not None and config.dataset.std is None:
        std = tuple(for_channels(config.views.std, in_chans))
    names = tuple(name.replace("_", " ") for name in arrays.class_names) if arrays.named else ()
    return Setup(arrays.num_classes, in_chans, mean, std, names, train_target=visible_targets(arrays, split))


def visible_targets(arrays: Arrays, split: Split) -> Tensor:
    """(N,) int64 labels of the train array, -1 where the run may not see them."""
    hidden = np.full(len(arrays.train_labels), -1, dtype=np.int64)
    hidden[split.labeled] = arrays.train_labels[split.labeled]
    return torch.from_numpy(hidden)


def load_head_warmups(method: Method[Any], required: Mapping[str, Path]) -> None:
    """Give each student with a head warm-up the weights of that run.

    Args:
        required: role -> directory of the finished run.
    """
    for role in head_warmup_runs(method.config):
        if role not in required:
            raise ConfigError(f"method={method.config.method.name}: its `requires` leaves out the {role} of a student")
        method.networks()[role.replace("head_warmup", "student")].load(required[role] / "student.safetensors")


def to_device(module: Any, config: RunConfig, device: torch.device) -> Any:
    return module.to(
        device, memory_format=torch.channels_last if config.schedule.channels_last else torch.preserve_format
    )
