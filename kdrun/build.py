"""The parts of a run that follow from its configuration and its data, for whoever trains or opens it again."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.config import RunConfig
from kdrun.data.dataset import Arrays
from kdrun.data.splits import Split
from kdrun.data.views import Recipe, Strong, Weak
from kdrun.method import Setup, for_channels


def recipes_of(config: RunConfig, arrays: Arrays) -> dict[str, Recipe]:
    """The views that a method may ask for, for images of this size."""
    size = (arrays.train_images.shape[1], arrays.train_images.shape[2])
    weak = Weak.of(config.views.weak, size, config.dataset.mirror)
    return {"weak": weak, "strong": Strong.of(config.views.strong, weak, size)}


def setup_of(config: RunConfig, arrays: Arrays, split: Split) -> Setup:
    """What networks and terms are built from. Pixels are normalised by the dataset's keys, else the recipe of views."""
    in_chans = arrays.train_images.shape[-1]
    mean, std = arrays.mean, arrays.std  # the dataset's own, or what `dataset.mean` and `dataset.std` give
    if config.views.mean is not None and config.dataset.mean is None:
        mean = tuple(for_channels(config.views.mean, in_chans))
    if config.views.std is not None and config.dataset.std is None:
        std = tuple(for_channels(config.views.std, in_chans))
    names = tuple(name.replace("_", " ") for name in arrays.class_names) if arrays.named else ()
    return Setup(arrays.num_classes, in_chans, mean, std, visible_targets(arrays, split), class_names=names)


def visible_targets(arrays: Arrays, split: Split) -> Tensor:
    """(N,) int64 labels of the train array, -1 where the run may not see them."""
    hidden = np.full(len(arrays.train_labels), -1, dtype=np.int64)
    hidden[split.labeled] = arrays.train_labels[split.labeled]
    return torch.from_numpy(hidden)


def to_device(module: Any, config: RunConfig, device: torch.device) -> Any:
    return module.to(
        device, memory_format=torch.channels_last if config.schedule.channels_last else torch.preserve_format
    )
