"""What a run would need more of than the machine has, told from shapes."""

import os

import torch
from torch import nn

from kdrun.core.device import device_of
from kdrun.core.errors import ConfigError
from kdrun.training.assembly import Assembly

FLOAT = 4  # bytes


def refuse_sizes(outline: Assembly) -> None:
    """Refuse networks and batches whose numbers alone fill the memory of the training device.

    Counted are weights, their gradients and the pixels of a batch: the least that any training keeps.
    """
    config = outline.config
    memory = _memory(device_of(config.execution.device))
    for name, network in outline.method.networks().items():
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        needed = FLOAT * (network.num_params + trained)
        if needed > memory:
            raise ConfigError(
                f"{name}: {network.name} has {network.num_params:.3g} parameters, which take {_gb(needed)} with their "
                f"gradients, and there are {_gb(memory)}; see student.args"
            )
    teacher = outline.teacher
    if teacher is not None and isinstance(teacher.network, nn.Module):
        needed = FLOAT * sum(parameter.numel() for parameter in teacher.network.parameters())
        if needed > memory:
            raise ConfigError(
                f"teacher: {teacher.name} takes {_gb(needed)}, and there are {_gb(memory)}; see teacher.model.args"
            )
    height, width = outline.size
    sides = [network.size or 0 for network in outline.method.networks().values()]
    pixels = max([height * width, *(side * side for side in sides)]) * outline.arrays.train_images.shape[3]
    needed = FLOAT * sum(config.method_class.batch_sizes(config).values()) * pixels
    if needed > memory:
        raise ConfigError(
            f"schedule.batch_size: {config.schedule.batch_size}: the pixels of a step take {_gb(needed)}, and there "
            f"are {_gb(memory)}; give a smaller one (or a smaller student.size)"
        )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
