"""Devices: which one a run takes, and moving small tensors there without waiting for it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kdrun.errors import ConfigError


def device_of(given: str) -> torch.device:
    """The device that `execution.device` names; auto is cuda where there is one, else the CPU.

    Raises:
        ConfigError: not a device, or absent on this machine.
    """
    if given == "auto":
        given = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = given.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= count:
        raise ConfigError(f"execution.device: {given} was asked for, but this machine has {count} {kind} devices")
    return torch.device(given)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The autocast of `schedule.precision`; weights, optimizer and losses stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. On CUDA the copy is queued, and the host does not wait for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
