"""What makes the host wait for the device, or shapes depend on numbers: a step with such a thing cannot be captured.

It is looked for in the operations that run, on any device: on a CPU nothing waits, but what would is known.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from kdrun.core.errors import ConfigError

ASKED = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}  # on a CPU no operation tells of them
SOLVERS = ("aten::_linalg_svd", "aten::_linalg_eigh")  # on CUDA they look whether they have converged
COPIES = ("aten::_to_copy", "aten::copy_")


@contextlib.contextmanager
def nothing_waits(refusal: Callable[[str], ConfigError]) -> Iterator[None]:
    """Raises `refusal` of what is wrong at the first operation that a captured step cannot have."""
    with _Calls(refusal), _Operations(refusal):
        yield


def let_wait() -> contextlib.AbstractContextManager[object]:
    """Inside of `nothing_waits`: what the host does beside the step."""
    pause: contextlib.AbstractContextManager[object] = _disable_current_modes()
    return pause


class _Calls(TorchFunctionMode):
    def __init__(self, refusal: Callable[[str], ConfigError]) -> None:
        super().__init__()
        self._refusal = refusal

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in ASKED:
            raise self._refusal(f"asks for numbers on the host (Tensor.{func.__name__}{_place()})")
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, refusal: Callable[[str], ConfigError]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._refusal = refusal

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        why = _why(func, args, given)
        if why is not None:
            raise self._refusal(f"{why} ({func.name().replace('::', '.')}{_place()})")
        return func(*args, **given)


def _why(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> str | None:
    name, tags = func.name(), func.tags
    if torch.Tag.data_dependent_output in tags:
        return "asks for numbers on the host"
    if name.startswith(SOLVERS):
        return "waits for a decomposition"
    if name.startswith(("aten::index", "aten::_index", "aten::_unsafe_index")):
        places = [place for place in args[1:] if isinstance(place, Sequence)]
        if any(isinstance(k, Tensor) and k.dtype in (torch.bool, torch.uint8) for place in places for k in place):
            return "chooses by a mask, and how many that are is a matter of numbers"
    elif torch.Tag.dynamic_output_shape in tags and given.get("output_size") is None:
        return "makes a tensor whose shape is a matter of numbers"
    if name == "aten::lift_fresh":
        return "makes a tensor of numbers of the host (torch.full takes them along)"
    if name in COPIES:
        to = given.get("device") if name == COPIES[0] else args[0].device
        source = args[0] if name == COPIES[0] else args[1]
        if to is not None and (to.type == "cpu") != (source.device.type == "cpu"):
            return "moves numbers between host and device"
    return None


def _place() -> str:
    """`, loss.py:12`: the innermost line outside of torch and this file."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and "torch" not in Path(path).parts:
            return f", {Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
