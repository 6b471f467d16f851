"""The only training loop: schedule, EMA, clipping, evaluation cadence, checkpoints, resume, finite guard.

A run is bitwise the same whether it was interrupted or not (same machine, CPU): batches and in-step random numbers are
pure functions of the step, and a checkpoint holds everything else.
"""

import contextlib
import inspect
import io
import logging
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kdrun.config import RunConfig
from kdrun.data.streams import Loader
from kdrun.data.views import Batch
from kdrun.device import autocast
from kdrun.errors import ConfigError, Interrupted, KdrunError, NonFiniteLoss, allowed
from kdrun.evaluation import Evaluator
from kdrun.files import atomic_path
from kdrun.method import Context, Guesses, Method, Step, parameter_groups
from kdrun.record import MetricsLog
from kdrun.schedule import Clock, LearningRate, Ramps, ScheduleConfig
from kdrun.tracking import Tracker

log = logging.getLogger(__name__)
KNOWN, RIGHT = "guesses_known", "guesses_right"  # kept step by step for the accuracy of a window, not logged


@dataclass
class Progress:
    """What a checkpoint keeps beside weights: how far the run is, and what was seen on the way."""

    step: int = 0
    """Optimizer steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    best_on_val: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"total": 0.0, "train": 0.0, "data": 0.0, "eval": 0.0})


class Ema:
    """Exponential moving average of all trainable parameters; buffers (batch statistics) are the live ones."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.shadow, self.live, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self.live):
            parameter.data, self.shadow[i] = self.shadow[i], parameter.data


class Loop:
    """Trains a method to its last step. `run` may be called on a fresh loop only."""

    def __init__(
        self, method: Method, loader: Loader, evaluator: Evaluator, clock: Clock, directory: Path, tracker: Tracker,
        key: str, still_ours: Callable[[], None] = lambda: None, hidden: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.method = method
        self.loader = loader
        self.evaluator = evaluator
        self.clock = clock
        self.config: RunConfig = method.config
        self.schedule: ScheduleConfig = self.config.schedule
        self.directory = directory
        self.tracker = tracker
        self.key = key
        self.still_ours = still_ours  # raises where another process took the run over
        self.hidden = hidden  # (N,) labels of the train array, -1 where nobody knows; to judge a method's guesses by
        self.device = next(method.parameters()).device
        self.optimizer = make_optimizer(method)
        self.rate = LearningRate(self.schedule, clock)
        self.ramps = Ramps(self.config.ramps)
        self.ema = Ema(method, self.schedule.ema_decay) if self.schedule.ema_decay is not None else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.schedule.precision == "fp16")
        self.progress = Progress()
        self.log = MetricsLog(directory / "metrics.jsonl")
        self._last: dict[tuple[str, str], Tensor] = {}  # logits of the evaluation at the last step
        self._window: list[Tensor] = []  # logged values of the steps since the last line
        self._names: list[str] = []

    # ------------------------------------------------------------------------------------------------- training

    def run(self) -> Progress:
        """Train from the last checkpoint, or from the start, to the last step."""
        self._resume()
        if not self.progress.step:
            self._prepare()
        execution, progress = self.config.execution, self.progress
        clip = self._clipped()
        batch_size = sum(type(self.method).batch_sizes(self.config).values())
        hidden = None if execution.progress is None else not execution.progress
        began, saved = time.perf_counter(), time.perf_counter()
        before = dict(progress.seconds)
        waited = evaluated = 0.0
        bar = tqdm(
            total=self.clock.total_steps * batch_size, initial=progress.step * batch_size, disable=hidden,
            unit="img", unit_scale=True, leave=False, desc=self.directory.name,
        )  # fmt: skip

        def clock_in() -> None:
            total = time.perf_counter() - began
            spent = {"total": total, "train": total - waited - evaluated, "data": waited, "eval": evaluated}
            progress.seconds = {name: before[name] + value for name, value in spent.items()}

        self.method.train()
        with StopSignal() as stop, bar:
            try:
                for step in range(progress.step, self.clock.total_steps):
                    started = time.perf_counter()
                    batch = self.loader.batch(step)
                    waited += time.perf_counter() - started

                    out = self._optimize(step, batch, clip)
                    self._keep(out)
                    progress.step = step + 1

                    if progress.step % execution.log_every_steps == 0 or progress.step == self.clock.total_steps:
                        self._flush()
                    if self._evaluation_due(progress.step):
                        self._check_finite()
                        started = time.perf_counter()
                        self._evaluate()
                        evaluated += time.perf_counter() - started
                    bar.update(batch_size)

                    now = time.perf_counter()
                    every = execution.checkpoint_every_steps
                    due = now - saved >= execution.checkpoint_every_seconds or (every and progress.step % every == 0)
                    last = progress.step == self.clock.total_steps
                    if stop.received is not None or (due and not last):
                        self._check_finite()
                        clock_in()
                        self._checkpoint()
                        saved = now
                    if stop.received is not None:
                        raise Interrupted(
                            f"stopped by {stop.received} after step {progress.step} of {self.clock.total_steps}; "
                            "a checkpoint was written, the same command goes on from there"
                        )
            except Exception as error:
                if stop.received is not None:  # the signal stops the sweep, whatever went wrong on the way
                    raise Interrupted(f"stopped by {stop.received}; no checkpoint: {error}") from error
                raise
        clock_in()
        waited, trained = progress.seconds["data"], progress.seconds["train"]
        share = waited / max(waited + trained, 1e-9)
        log.info("trained for %.1f s, of which %.0f %% waiting for data", waited + trained, 100 * share)
        return progress

    def _prepare(self) -> None:
        with autocast(self.device, self.schedule.precision):
            self.method.prepare(self.loader.batch, self.clock.total_steps)
        if self.ema is not None:
            self.ema = Ema(self.method, self.ema.decay)

    def _optimize(self, step: int, batch: Batch, clip: Mapping[str, list[Tensor]]) -> Step:
        """One optimizer step. Nothing here waits for the device."""
        factor = self.rate.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        factors = self.ramps.factors(step / self.clock.total_steps)
        ctx = Context(self.config.seed, step, self.clock.total_steps, self.device, factors)
        if self.schedule.compile is not None:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave may be overwritten
        with autocast(self.device, self.schedule.precision):
            out: Step = self.method(batch, ctx)
        self.optimizer.zero_grad(set_to_none=True)
        self.method.backward(out.losses, self.scaler.scale)
        if clip:
            self.scaler.unscale_(self.optimizer)
        for parameters in clip.values():
            nn.utils.clip_grad_norm_(parameters, self.schedule.clip_norm or math.inf, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()
        self.method.finish_step(ctx)
        return out

    def _clipped(self) -> dict[str, list[Tensor]]:
        """The parameters whose gradient norm is limited, by student."""
        by_net: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups if self.schedule.clip_norm is not None else []:
            by_net.setdefault(group["net"], []).extend(group["params"])
        return by_net

    # ----------------------------------------------------------------------------------------------- evaluation

    def _evaluation_due(self, done: int) -> bool:
        if done == self.clock.total_steps:
            return True
        if self.schedule.eval_every_steps is not None:
            return done % self.schedule.eval_every_steps == 0
        if self.schedule.eval_every_epochs is not None:
            period = self.schedule.eval_every_epochs * self.clock.steps_per_epoch
            return math.floor((done + 0.5) / period) > math.floor((done - 0.5) / period)
        return False

    def _evaluate(self) -> None:
        logits = self._logits()
        metrics = {**self.evaluator.metrics(logits), **self.method.choices()}
        progress = self.progress
        if progress.step == self.clock.total_steps:
            self._last = logits
        progress.metrics = metrics
        score = metrics.get(f"val/{self.method.headline}/top1")
        if score is not None:
            self.rate.decay.observe(score)
            names = [f"val/{name}/top1" for name in self.method.students]  # a method may show other nets
            scores = [metrics[name] for name in names if name in metrics] or [score]
            self.ramps.observe(math.fsum(scores) / len(scores))
            best = progress.best_on_val
            if math.isfinite(score) and (best is None or score > best["metrics"][f"val/{self.method.headline}/top1"]):
                progress.best_on_val = {"step": progress.step, "metrics": metrics}
                if self.schedule.evaluates_more_than_once:
                    self.save_networks(".best")
        self._write(metrics)

    def save_networks(self, suffix: str = "") -> None:
        """Write <net><suffix>.safetensors, the averaged weights where there is an EMA."""
        self.still_ours()
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            for name, network in self.method.networks().items():
                network.save(self.directory / f"{name}{suffix}.safetensors")

    def final_logits(self) -> dict[tuple[str, str], Tensor]:
        """(split, net) -> logits of every predictor after the last step."""
        return self._last or self._logits()  # a run may have been stopped between its last step and its record

    def _logits(self) -> dict[tuple[str, str], Tensor]:
        """With an EMA, `<net>` has the averaged weights and `<net>_raw` the live ones."""
        self.method.eval()
        try:
            if self.ema is None:
                return self._settled()
            live = self._settled()
            with self.ema.applied():  # the last one: what the method chooses now stays
                return {**self._settled(), **{(split, f"{net}_raw"): values for (split, net), values in live.items()}}
        finally:
            self.method.train()

    def _settled(self) -> dict[tuple[str, str], Tensor]:
        consulted = self.method.consulted()
        logits = self.evaluator.logits({**self.method.predictors(), **consulted})
        val = self.evaluator.splits.get("val")
        settled = self.method.settle(logits, None if val is None else val[2])
        return {place: values for place, values in settled.items() if place[1] not in consulted}

    # ------------------------------------------------------------------------------------------ logged values

    def _keep(self, out: Step) -> None:
        losses, metrics = out.losses, {**out.metrics, **self._judged(out.guesses)}
        names = [f"train/loss/{name}" for name in losses] + [f"train/{name}" for name in metrics]
        if self._names and names != self._names:
            raise KdrunError(f"the method's losses and metrics changed their names from {self._names} to {names}")
        self._names = names
        self._window.append(torch.stack([*losses.values(), *metrics.values()]).detach())

    def _judged(self, guesses: Guesses | None) -> dict[str, Tensor]:
        """Shares of the batch: learned from, of those with a known label, and right."""
        if guesses is None:
            return {}
        out = {"mask_rate": guesses.used.float().mean()}
        if self.hidden is not None:
            truth = self.hidden[guesses.index]
            known = guesses.used & (truth >= 0)
            right = known & (truth == guesses.label)
            out |= {KNOWN: known.float().mean(), RIGHT: right.float().mean()}
        return out

    def _check_finite(self) -> None:
        """Stop at the first step whose loss was NaN or infinite; one transfer for the whole window."""
        if not self._window:
            return
        values = torch.stack(self._window).cpu()
        for row, column in (~torch.isfinite(values)).nonzero().tolist():
            name = self._names[column]
            if name.startswith("train/loss/"):
                step = self.progress.step - len(self._window) + row
                raise NonFiniteLoss(
                    f"step {step}: loss term {name.removeprefix('train/loss/')!r} became {values[row, column]:g} "
                    f"(learning rate factor {self.rate.factor(step):.3g}); lower schedule.lr or set schedule.clip_norm"
                )

    def _flush(self) -> None:
        self._check_finite()
        means = torch.stack(self._window).cpu().double().nanmean(0).tolist()  # NaN: not measured in that step
        self._window.clear()
        values = dict(zip(self._names, means, strict=True))
        known, right = values.pop(f"train/{KNOWN}", 0.0), values.pop(f"train/{RIGHT}", 0.0)
        if known:  # a mean over steps would weigh a guess by how few there were beside it
            values["train/pseudo_label_accuracy"] = right / known
        factors = self.ramps.factors((self.progress.step - 1) / self.clock.total_steps)
        weights = {f"train/{key}": factor * self.config.weights[key] for key, factor in factors.items()}
        self._write({**values, "train/lr": self.optimizer.param_groups[0]["lr"], **weights})

    def _write(self, values: dict[str, float]) -> None:
        self.still_ours()
        self.log.write(self.progress.step, values)
        self.tracker.log(self.progress.step, values)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self) -> None:
        self.still_ours()
        progress = self.progress
        state = {
            "key": self.key,
            "progress": {
                "step": progress.step, "metrics": progress.metrics, "best_on_val": progress.best_on_val,
                "seconds": progress.seconds,
            },
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.shadow if self.ema is not None else [],
            "scaler": self.scaler.state_dict(),
            "decay": self.rate.decay.state_dict(),
            "ramps": self.ramps.state_dict(),
            "window": self._window,
            "names": self._names,
            "random": random_state(),
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        last, previous = self._checkpoints()
        with atomic_path(last) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            if last.exists():  # only now that the new one is on disk: one of the two is whole at any time
                os.replace(last, previous)

    def _checkpoints(self) -> tuple[Path, Path]:
        return self.directory / "checkpoint" / "last.pt", self.directory / "checkpoint" / "previous.pt"

    def _resume(self) -> None:
        found = [path for path in self._checkpoints() if path.exists()]
        for i, path in enumerate(found):
            try:
                state = torch.load(path, map_location=self.device, weights_only=True)
                break
            except Exception as error:  # whatever a damaged file makes torch raise
                if i + 1 == len(found):
                    raise KdrunError(
                        f"{path}: damaged checkpoint ({type(error).__name__}); "
                        f"delete {path.parent} to start this run anew"
                    ) from error
                log.warning("%s is damaged; going on from %s", path, found[i + 1].name)
        else:
            self.log.cut(-1)
            return
        if state["key"] != self.key:
            raise KdrunError(f"{path}: belongs to run {state['key']}, not {self.key}; delete {path.parent}")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.shadow = list(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        self.rate.decay.load_state_dict(state["decay"])
        self.ramps.load_state_dict(state.get("ramps", {}))  # a checkpoint from before there were ramps has none
        self._window, self._names = list(state["window"]), list(state["names"])
        self.progress = Progress(**state["progress"])
        set_random_state(state["random"])
        self.log.cut(self.progress.step)
        log.info("resumed at step %d of %d", self.progress.step, self.clock.total_steps)


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop reads between steps; a second Ctrl-C stops now."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


def make_optimizer(method: Method) -> torch.optim.Optimizer:
    """The optimizer of `schedule` over all students, one group each."""
    from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers

    schedule = method.config.schedule
    groups = parameter_groups(method)
    name, known = schedule.optimizer, [str(n) for n in list_optimizers()]
    own: Any = getattr(torch.optim, name, None)
    torch_own = isinstance(own, type) and name not in ("Optimizer", "LBFGS", "SparseAdam")
    if not torch_own and name not in known:
        raise ConfigError(f"schedule.optimizer: unknown optimizer {name!r}; {allowed(name, known, most=0)}")
    plain = torch_own or name == "sgd"  # timm's "sgd" is always Nesterov's
    build: Any = (own if torch_own else torch.optim.SGD) if plain else get_optimizer_class(name, bind_defaults=False)
    accepted = inspect.signature(build).parameters
    kernels = "fused" if schedule.fused else "foreach"
    if schedule.fused and kernels not in accepted:
        raise ConfigError(f"schedule.fused: {name} has no fused kernel; sgd, adam, adamw and adagrad have one")
    common: dict[str, Any] = {"momentum": schedule.momentum, "nesterov": schedule.nesterov} if plain else {}
    common = {key: value for key, value in {**common, kernels: True}.items() if key in accepted}
    common |= schedule.optimizer_args
    try:
        made: object
        if plain:
            made = build(groups, lr=schedule.lr, **common)
        else:
            made = create_optimizer_v2(
                groups,
                opt=name,
                lr=schedule.lr,
                weight_decay=schedule.weight_decay,
                momentum=schedule.momentum,
                **common,
            )
    except (TypeError, ValueError, RuntimeError) as error:
        given = schedule.optimizer_args
        raise ConfigError(f"schedule.optimizer_args: {name} does not take {given}: {error}") from None
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"schedule.optimizer: {name} wraps an optimizer, which resuming does not support")
    return made


def random_state() -> dict[str, Any]:
    """State of the global generators, in types that torch.load(weights_only=True) reads."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
