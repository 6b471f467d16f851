"""The only training loop: schedule, EMA, clipping, evaluation cadence, checkpoints, resume, finite guard.

A run is bitwise the same whether it was interrupted or not (same machine, CPU): batches and in-step random numbers are
pure functions of the step, and a checkpoint holds everything else.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kdrun.config.run import RunConfig
from kdrun.config.schedule import Clock, ScheduleConfig
from kdrun.core import signals
from kdrun.core.device import autocast, eager
from kdrun.core.errors import KdrunError, NonFiniteLoss
from kdrun.core.files import remove, write_bytes
from kdrun.core.world import world
from kdrun.data.loader import Loader
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Guesses, Step
from kdrun.runs.metrics_log import MetricsLog
from kdrun.training.accumulation import gradients, whole
from kdrun.training.captured import CapturedStep
from kdrun.training.checkpoint import Checkpoint, random_state, set_random_state
from kdrun.training.distributed import average_gradients, prepare, seed_step
from kdrun.training.ema import Ema
from kdrun.training.evaluator import Evaluator, choice_metrics
from kdrun.training.finite import REMEDY
from kdrun.training.optimizer import make_optimizer
from kdrun.training.rates import LearningRate, Ramps
from kdrun.training.state import OtherMetrics, Progress, restore, state_of
from kdrun.training.stopwatch import Stopwatch
from kdrun.training.tape import Tape
from kdrun.training.tracking import Tracker

log = logging.getLogger(__name__)
KNOWN, RIGHT = "guesses_known", "guesses_right"  # kept step by step for the accuracy of a window, not logged


class Loop:
    """Trains a method to its last step. `run` may be called on a fresh loop only."""

    def __init__(
        self, method: Method[Any], loader: Loader, evaluator: Evaluator, clock: Clock, directory: Path,
        tracker: Tracker, key: str, still_ours: Callable[[], None] = lambda: None, hidden: Tensor | None = None,
        before: Callable[[bool], None] = lambda fresh: None,
    ) -> None:  # fmt: skip
        self.method = method
        self.loader = loader
        self.evaluator = evaluator
        self.clock = clock
        self.config: RunConfig = method.config
        self.schedule: ScheduleConfig = self.config.schedule
        self.directory = directory
        self.tracker = tracker
        self.checkpoint = Checkpoint(directory / "checkpoint", key)
        self.before = before  # called once before the first step of this process: whether the run is fresh
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
        self._batch_size = sum(type(method).batch_sizes(self.config).values())  # images a step, of all streams
        self._last: dict[tuple[str, str], Tensor] = {}  # logits of the evaluation at the last step
        self.best: dict[str, bytes] = {}  # network -> its file with the weights that were best on validation images
        self.touched = False  # by a checkpoint
        self.unevaluated = False  # a signal broke off the evaluation that was due after the last step
        self.window: list[Tensor] = []  # logged values of the steps since the last line
        self.names: list[str] = []
        self._parts = 1 if whole(self.config) else self.schedule.accumulate
        self._watch = Stopwatch(self.progress.seconds)

    # ------------------------------------------------------------------------------------------------- training

    def run(self) -> Progress:
        """Train from the last checkpoint, or from the start, to the last step."""
        with signals.at_once():
            self._resume()
            self._prepare()
        progress, total_steps = self.progress, self.clock.total_steps
        take, watch = self._steps(), Stopwatch(progress.seconds)
        self._watch = watch
        self.method.train()
        with self._bar() as bar:
            if self.unevaluated:
                self._evaluate()
            for step in range(progress.step, total_steps):
                self.window.append(take(step))
                progress.step = step + 1
                self._tell(watch)
                bar.update(self._batch_size)
                self._save_where_due(watch)
                signals.poll()
        progress.seconds = watch.seconds()
        waited, trained = progress.seconds["data"], progress.seconds["train"]
        share = waited / max(waited + trained, 1e-9)
        log.info("trained for %.1f s, of which %.0f %% waiting for data", waited + trained, 100 * share)
        return progress

    @contextlib.contextmanager
    def stopped_well(self) -> Iterator[None]:
        """Around `run` and what follows it: a signal waits until the state is whole, and a checkpoint is written then.

        Raises:
            Interrupted: after that, or at once where a second signal asks for it.
        """
        total_steps, last = self.clock.total_steps, "the same command goes on from its last checkpoint, or begins anew"
        with signals.during(f"training {self.directory}", last), signals.put_off():
            try:
                try:
                    yield
                    signals.poll()
                except signals.PutOff as stop:
                    self._save(self._watch)
                    stop.text = (
                        f"stopped by {stop.name} after step {self.progress.step} of {total_steps}; "
                        "a checkpoint was written, the same command goes on from there"
                    )
                    raise
            except Exception as error:
                number = signals.received()
                if number is not None:  # it stops the sweep, whatever went wrong on the way
                    text = f"stopped by {number.name}; no checkpoint: {error}"
                    raise signals.Interrupted(number, text) from error
                raise

    def _bar(self) -> "tqdm[NoReturn]":
        given = self.config.execution.progress
        return tqdm(
            total=self.clock.total_steps * self._batch_size, initial=self.progress.step * self._batch_size,
            disable=None if given is None else not given, unit="img", unit_scale=True, leave=False,
            desc=self.directory.name,
        )  # fmt: skip

    def _tell(self, watch: Stopwatch) -> None:
        """Log and evaluate where it is due after a step."""
        done = self.progress.step
        if done % self.config.execution.log_every_steps == 0 or done == self.clock.total_steps:
            self._flush()
        if self.schedule.evaluates_after(done, self.clock):
            self._check_finite()
            self._evaluate()

    def _save_where_due(self, watch: Stopwatch) -> None:
        """A checkpoint after a step: when the time or the number of steps has come."""
        execution, done = self.config.execution, self.progress.step
        every = execution.checkpoint_every_steps
        due = watch.elapsed() >= execution.checkpoint_every_seconds or (every and done % every == 0)
        if due and done != self.clock.total_steps:
            self._save(watch)

    def _save(self, watch: Stopwatch) -> None:
        self._check_finite()
        self.progress.seconds = watch.seconds()
        self._checkpoint()
        watch.mark()

    def _prepare(self) -> None:
        fresh, state = not self.progress.step, random_state(self.device)
        self.before(fresh)
        set_random_state(state, self.device)  # what was drawn there, or not as it lay on disk, changes no step
        if fresh and self.ema is not None:
            self.ema = Ema(self.method, self.ema.decay)

    def _steps(self) -> Callable[[int], Tensor]:
        """What takes a step and gives its logged values."""
        clip, seed, total_steps = self._clip_groups(), self.config.seed, self.clock.total_steps
        prepare(self.method)

        def plain(step: int) -> Tensor:
            with self._watch.on("data"):
                batch = self.loader.batch(step)
            return self._values(self._optimize(step, batch, clip))

        if not self.schedule.graph:
            return plain
        tape = Tape(seed, total_steps, self.device, self.config.method.name)
        take = CapturedStep(
            lambda batch, ctx: self._values(self._update(batch, ctx, clip)), self.loader, self.optimizer, tape,
            watched=self.schedule.compile is None,
        )  # fmt: skip

        def captured(step: int) -> Tensor:
            with self._watch.on("data"):
                drawn = self.loader.drawn(step)
            return take(step, drawn, self._rates(step), self.ramps.factors(step / total_steps))

        return captured

    def _rates(self, step: int) -> list[float]:
        """The learning rate of each group of parameters."""
        factor = self.rate.factor(step)
        return [group["base_lr"] * factor for group in self.optimizer.param_groups]

    def _optimize(self, step: int, batch: Batch, clip: Mapping[str, list[Tensor]]) -> Step:
        """One optimizer step, with the host's numbers."""
        for group, rate in zip(self.optimizer.param_groups, self._rates(step), strict=True):
            group["lr"] = rate
        seed, total_steps = self.config.seed, self.clock.total_steps
        seed_step(seed, step)
        factors = self.ramps.factors(step / total_steps)
        return self._update(batch, Context(seed, step, total_steps, self.device, factors, world().part), clip)

    def _update(self, batch: Batch, ctx: Context, clip: Mapping[str, list[Tensor]]) -> Step:
        """One optimizer step. Nothing here waits for the device, and no number of the host is used but `ctx`'s."""

        def around() -> contextlib.AbstractContextManager[object]:
            if self.schedule.compile is not None:
                torch.compiler.cudagraph_mark_step_begin()  # what the last pass's graphs gave may be overwritten
            return autocast(self.device, self.schedule.precision)

        if self._parts > 1:
            self.optimizer.zero_grad(set_to_none=True)
            out = gradients(self.method, batch, ctx, self._parts, self.scaler.scale, around)
        else:
            with around():
                out = self.method(batch, ctx)
            self.optimizer.zero_grad(set_to_none=True)
            self.method.backward(out.losses, self.scaler.scale)
        average_gradients(self.method)
        if clip:
            self.scaler.unscale_(self.optimizer)
        for parameters in clip.values():
            nn.utils.clip_grad_norm_(parameters, self.schedule.clip_norm or math.inf, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()
        self.method.finish_step()
        if self.method.probes:
            self._probe(batch)
        return out

    @torch.no_grad()
    def _probe(self, batch: Batch) -> None:
        averaged = contextlib.nullcontext() if self.ema is None else self.ema.applied()
        uncompiled = contextlib.nullcontext() if self.schedule.compile is None else eager()
        self.method.eval()
        with averaged, uncompiled, autocast(self.device, self.schedule.precision):
            self.method.probe(batch)
        self.method.train()

    def _clip_groups(self) -> dict[str, list[Tensor]]:
        """The parameters whose gradient norm is limited, by student."""
        by_net: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups if self.schedule.clip_norm is not None else []:
            by_net.setdefault(group["net"], []).extend(group["params"])
        return by_net

    # ----------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self) -> None:
        """All networks. A signal breaks it off: nothing has changed then, and it is done again before the next step."""
        before, self.unevaluated = random_state(self.device), True
        try:
            with self._watch.on("eval"):
                logits = self._logits()
        except signals.PutOff:
            set_random_state(before, self.device)
            raise
        self.unevaluated = False
        metrics = {**self.evaluator.metrics(logits), **choice_metrics(self.method)}
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
                    self.best = self._files()
        self._write(metrics)

    def save_networks(self) -> None:
        """Write <net>.safetensors, the averaged weights where there is an EMA, and <net>.best.safetensors.

        The best ones are written at the end: until then a checkpoint has them, so that what a killed run has seen after
        its checkpoint does not count.
        """
        self.still_ours()
        for suffix, files in (("", self._files()), (".best", self.best)):
            for name, content in files.items():
                write_bytes(self.directory / f"{name}{suffix}.safetensors", content)

    def _files(self) -> dict[str, bytes]:
        """The file of each network as it is now."""
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            return {name: network.saved() for name, network in self.method.networks().items()}

    def final_logits(self) -> dict[tuple[str, str], Tensor]:
        """(split, net) -> logits of all networks after the last step."""
        return self._last or self._logits()  # a run may have been stopped between its last step and its record

    def _logits(self) -> dict[tuple[str, str], Tensor]:
        """With an EMA, `<net>` has the averaged weights and `<net>_raw` the live ones."""
        self.method.eval()
        try:
            if self.ema is None:
                return self.evaluator.settled(self.method)
            live = self.evaluator.settled(self.method)
            raw = {(split, f"{net}_raw"): values for (split, net), values in live.items()}
            with self.ema.applied():  # the last one: what the method chooses now stays
                return {**self.evaluator.settled(self.method), **raw}
        finally:
            self.method.train()

    # ------------------------------------------------------------------------------------------ logged values

    def _values(self, out: Step) -> Tensor:
        """What is logged of a step, (n,), under `names`."""
        losses, metrics = out.losses, {**out.metrics, **self._guess_metrics(out.guesses)}
        names = [f"train/loss/{name}" for name in losses] + [f"train/{name}" for name in metrics]
        if self.names and names != self.names:
            raise KdrunError(f"the method's losses and metrics changed their names from {self.names} to {names}")
        self.names = names
        return torch.stack([*losses.values(), *metrics.values()]).detach()

    def _guess_metrics(self, guesses: Guesses | None) -> dict[str, Tensor]:
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
        if not self.window:
            return
        values = torch.stack(self.window).cpu()
        for row, column in (~torch.isfinite(values)).nonzero().tolist():
            name = self.names[column]
            if name.startswith("train/loss/"):
                step = self.progress.step - len(self.window) + row
                raise NonFiniteLoss(
                    f"step {step}: loss term {name.removeprefix('train/loss/')!r} became {values[row, column]:g} "
                    f"(learning rate factor {self.rate.factor(step):.3g}); {REMEDY}"
                )

    def _flush(self) -> None:
        self._check_finite()
        means = torch.stack(self.window).cpu().double().nanmean(0).tolist()  # NaN: not measured in that step
        self.window.clear()
        values = dict(zip(self.names, means, strict=True))
        known, right = values.pop(f"train/{KNOWN}", 0.0), values.pop(f"train/{RIGHT}", 0.0)
        if known:  # a mean over steps would weigh a guess by how few there were beside it
            values["train/pseudo_label_accuracy"] = right / known
        factors = self.ramps.factors((self.progress.step - 1) / self.clock.total_steps)
        weights = {f"train/{key}": factor * self.config.weights[key] for key, factor in factors.items()}
        self._write({**values, "train/lr": self._rates(self.progress.step - 1)[0], **weights})

    def _write(self, values: dict[str, float]) -> None:
        self.still_ours()
        self.log.write(self.progress.step, values)
        self.tracker.log(self.progress.step, values)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self) -> None:
        self.still_ours()
        self.checkpoint.save(state_of(self))

    def _resume(self) -> None:
        errors = self.checkpoint.load(partial(restore, self))
        if errors is None:
            log.info("resumed at step %d of %d", self.progress.step, self.clock.total_steps)
            return
        lost = [error for error in errors if isinstance(error, OtherMetrics)]
        if errors and (self.touched or not lost):
            raise self.checkpoint.damage([error for error in errors if error not in lost])
        if lost:
            log.warning("%s: %s; the run begins anew", self.directory, lost[-1])
            remove(self.checkpoint.folder)
        self.log.cut(-1)
