"""What a checkpoint keeps of a loop, and how a loop goes on from it: the one place that knows both."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kdrun.config.schedule import ScheduleConfig
from kdrun.methods.method import Method
from kdrun.runs.metrics_log import MetricsLog
from kdrun.training.checkpoint import random_state, set_random_state
from kdrun.training.ema import Ema
from kdrun.training.rates import LearningRate, Ramps
from kdrun.training.window import Window

SHAPE = {
    "progress": dict, "method": dict, "optimizer": dict, "ema": list, "scaler": dict, "decay": dict, "window": list,
    "names": list, "random": dict,
}  # fmt: skip
"""Entries of every state, since the first checkpoints. `ramps`, `metrics`, `best` and `unevaluated` came later."""


@dataclass
class Progress:
    """What a checkpoint keeps beside weights: how far the run is, and what was seen on the way."""

    step: int = 0
    """Optimizer steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    best_on_val: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"total": 0.0, "train": 0.0, "data": 0.0, "eval": 0.0})


class Loop(Protocol):
    """What of a loop changes as it trains, and what that is made of."""

    method: Method[Any]
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    scaler: torch.amp.GradScaler
    rate: LearningRate
    ramps: Ramps
    log: MetricsLog
    progress: Progress
    window: Window
    """Logged values of the steps since the last line."""
    best: dict[str, bytes]
    """Network -> its file with the weights that were best on the validation images."""
    touched: bool
    """Whether a state has changed it."""
    unevaluated: bool
    """Whether a signal broke off the evaluation that was due after the last step."""
    directory: Path
    device: torch.device
    schedule: ScheduleConfig


class OtherMetrics(ValueError):
    """metrics.jsonl does not begin with what it held when the state was written."""


def state_of(loop: Loop) -> dict[str, Any]:
    """All that the steps to come depend on, and what has been measured. metrics.jsonl is on the disk from then on."""
    return {
        "progress": asdict(loop.progress),
        "method": loop.method.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "ema": loop.ema.shadow if loop.ema is not None else [],
        "scaler": loop.scaler.state_dict(),
        "decay": loop.rate.decay.state_dict(),
        "ramps": loop.ramps.state_dict(),
        "window": loop.window.steps,
        "names": loop.window.names,
        "unevaluated": loop.unevaluated,
        "random": random_state(loop.device),
        "metrics": loop.log.sum(),
        "best": {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in loop.best.items()},
    }


def restore(loop: Loop, state: dict[str, Any]) -> None:
    """Set a loop back to a state, whose tensors are on the CPU.

    Raises:
        OtherMetrics: before anything is set.
        Exception: of whatever kind, where the state is not whole; what can be told beforehand is a ValueError.
    """
    _refuse(loop, state)
    known = state.get("metrics")
    if known is not None and not loop.log.begins_with(known):
        raise OtherMetrics("metrics.jsonl is not as it was when the checkpoint was written")
    best = {name: content.numpy().tobytes() for name, content in _best(loop, state).items()}
    loop.touched = True
    loop.method.load_state_dict(state["method"])
    loop.optimizer.load_state_dict(state["optimizer"])
    if loop.ema is not None:
        loop.ema.shadow = [value.to(loop.device) for value in state["ema"]]
    loop.scaler.load_state_dict(state["scaler"])
    loop.rate.decay.load_state_dict(state["decay"])
    loop.ramps.load_state_dict(state.get("ramps", {}))
    loop.window.restore([value.to(loop.device) for value in state["window"]], list(state["names"]))
    loop.unevaluated = bool(state.get("unevaluated"))
    loop.progress = Progress(**state["progress"])
    set_random_state(state["random"], loop.device)
    loop.best = best
    if known is None:
        loop.log.cut(loop.progress.step)
    else:
        loop.log.go_on(known)


def _refuse(loop: Loop, state: dict[str, Any]) -> None:
    """Raises ValueError where entries are missing, or are not this loop's."""
    for name, kind in SHAPE.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"it has no {name}")
    progress = state["progress"]
    if set(progress) != {each.name for each in fields(Progress)} or type(progress["step"]) is not int:
        raise ValueError("its progress is not whole")
    own = loop.method.state_dict()
    if set(own) != set(state["method"]):
        raise ValueError("it has other weights than the method")
    shadow = loop.ema.shadow if loop.ema is not None else []
    pairs = [(own[name], state["method"][name]) for name in own]
    for mine, theirs in [*pairs, *zip(shadow, state["ema"], strict=True)]:
        if isinstance(mine, Tensor) and (not isinstance(theirs, Tensor) or theirs.shape != mine.shape):
            raise ValueError("its weights have other shapes")


def _best(loop: Loop, state: dict[str, Any]) -> dict[str, Tensor]:
    """The files of the best weights so far, which a state from before they were kept in it has beside it."""
    if "best" in state:
        best: dict[str, Tensor] = state["best"]
        return best
    if state["progress"]["best_on_val"] is None or not loop.schedule.evaluates_more_than_once:
        return {}
    found = {name: loop.directory / f"{name}.best.safetensors" for name in loop.method.kept()}
    return {name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for name, path in found.items()}
