"""Devices: which one a run takes, and moving small tensors there without waiting for it."""

import os
import shutil
import sysconfig
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from kdrun.core.errors import ConfigError
from kdrun.core.machine import cores, keep_memory
from kdrun.core.slot import slot


def device_of(given: str, key: str = "execution.device") -> torch.device:
    """The device that `given` names; auto is cuda where there is one (its slot may say which), else the CPU.

    Args:
        key: what to blame.

    Raises:
        ConfigError: not a device, or absent on this machine.
    """
    if given == "auto":
        given = _cuda() if torch.cuda.is_available() else "cpu"
    kind, _, number = given.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= count:
        raise ConfigError(f"{key}: {given} was asked for, but this machine has {count} {kind} devices")
    return torch.device(given)


def _cuda() -> str:
    index = slot().index
    return "cuda" if index is None else f"cuda:{index % torch.cuda.device_count()}"


_THREADS = min(torch.get_num_threads(), cores())  # torch's own choice: a job of a sweep must not inherit the last one's


def use_machine(device: str, threads: int | str | None) -> torch.device:
    """The device that is named; torch works with so many threads from now on, and keeps its memory.

    Args:
        threads: None and auto: those of the slot, where it has none torch's own choice. What of them a run gains by,
            its runner finds out.
    """
    keep_memory()
    torch.set_num_threads(threads if isinstance(threads, int) else slot().threads or _THREADS)
    return device_of(device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The autocast of `schedule.precision`; weights, optimizer and losses stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def exactly(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """As `autocast`, whatever autocast is in force around it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of a tensor, which would multiply matrices in half precision; on meta, too, where torch
    knows of none."""
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


def compile_networks(networks: Iterable[nn.Module], mode: str) -> None:
    """Have torch.compile make the kernels of each network at its first call; names of parameters stay."""
    torch.compiler.reset()  # the graphs of the last job of a sweep count against the same limit
    for network in networks:
        network.compile(mode=mode)


def eager() -> AbstractContextManager[object]:
    """Compiled networks run uncompiled inside: an evaluation's batch sizes would each be compiled anew."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def require_compiler() -> None:
    """Raises ConfigError where torch.compile would find no C++ compiler or no headers of Python."""
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            f"schedule.compile: torch.compile needs a C++ compiler, found no {' and no '.join(compilers)}"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise ConfigError("schedule.compile: torch.compile needs Python's C headers (Debian: python3-dev), found none")


def finish(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given; a clock would miss it else."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device. On CUDA the copy of a CPU tensor is queued, and the host does not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
