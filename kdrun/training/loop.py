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
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.run import RunConfig
from kdrun.config.schedule import Clock, ScheduleConfig
from kdrun.core import signals
from kdrun.core.device import autocast, eager
from kdrun.core.errors import KdrunError
from kdrun.core.files import remove, write_bytes
from kdrun.core.peers import RankFailed
from kdrun.core.progress import shown
from kdrun.core.world import world
from kdrun.data.loader import Loader
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step
from kdrun.runs.metrics_log import MetricsLog, Unwritten
from kdrun.training.accumulation import gradients, steps_in
from kdrun.training.captured import CapturedStep
from kdrun.training.checkpoint import Checkpoint, random_state, set_random_state
from kdrun.training.distributed import average_gradients, prepare, seed_step, settle_statistics
from kdrun.training.dot import DOT, parted
from kdrun.training.ema import Ema
from kdrun.training.evaluator import Evaluator, choice_metrics
from kdrun.training.finite import checked_first
from kdrun.training.optimizer import clip_groups, make_optimizer
from kdrun.training.profile import profiled
from kdrun.training.progress import TrainingMeter
from kdrun.training.rates import LearningRate, Ramps
from kdrun.training.state import OtherMetrics, Progress, restore, state_of
from kdrun.training.stopwatch import Stopwatch
from kdrun.training.tape import Tape
from kdrun.training.tracking import Tracking
from kdrun.training.window import Window

log = logging.getLogger(__name__)


class Loop:
    """Trains a method to its last step. `run` may be called on a fresh loop only."""

    def __init__(
        self, method: Method[Any], loader: Loader, evaluator: Evaluator, clock: Clock, directory: Path,
        tracking: Tracking, key: str, still_ours: Callable[[], None] = lambda: None, hidden: Tensor | None = None,
        before: Callable[[bool], None] = lambda fresh: None,
    ) -> None:  # fmt: skip
        self.method = method
        self.loader = loader
        self.evaluator = evaluator
        self.clock = clock
        self.config: RunConfig = method.config
        self.schedule: ScheduleConfig = self.config.schedule
        self.directory = directory
        self.tracking = tracking
        self.checkpoint = Checkpoint(directory / "checkpoint", key)
        self.before = before  # called once before the first step of this process: whether the run is fresh
        self.still_ours = still_ours  # raises where another process took the run over
        self.device = next(method.parameters()).device
        self.optimizer = make_optimizer(method)
        self.rate = LearningRate(self.schedule, clock)
        self.ramps = Ramps(self.config.ramps)
        self.ema = Ema(method, self.schedule.ema_decay) if self.schedule.ema_decay is not None else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.schedule.precision == "fp16")
        self.progress = Progress()
        self.log = (MetricsLog if world().first else Unwritten)(directory / "metrics.jsonl")
        self._last: dict[tuple[str, str], Tensor] = {}  # logits of the evaluation at the last step
        self.best: dict[str, bytes] = {}  # network -> its file with the weights that were best on validation images
        self.touched = False  # by a checkpoint
        self.unevaluated = False  # a signal broke off the evaluation that was due after the last step
        self.window = Window(hidden)
        self._parts = steps_in(self.config)
        self._watch = Stopwatch(self.progress.seconds)

    # ------------------------------------------------------------------------------------------------- training

    def run(self) -> Progress:
        """Train from the last checkpoint, or from the start, to the last step."""
        with signals.at_once():
            self._resume()
            self._prepare()
        progress, total_steps, here = self.progress, self.clock.total_steps, world()
        take, watch = self._steps(), Stopwatch(progress.seconds)
        self._watch = watch
        self.method.train()
        profiler = profiled(self.config, self.directory, self.device)
        with shown(self.config.execution.progress), self._meter() as meter, profiler as profile:
            if self.unevaluated:
                self._evaluate(meter)
            for step in range(progress.step, total_steps):
                self.window.steps.append(take(step))
                progress.step = step + 1
                meter.update()
                self._tell(meter)
                profile.step()
                number, late = here.lately(signals.received() or 0, here.first and self._is_late(watch))
                self._save_where_due(watch, bool(late))
                here.stop(number)
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
                    world().poll(sure=True)
                except signals.PutOff as stop:
                    self._save(self._watch)
                    world().failing = True  # nobody need end this process
                    stop.text = (
                        f"stopped by {stop.name} after step {self.progress.step} of {total_steps}; "
                        "a checkpoint was written, the same command goes on from there"
                    )
                    raise
            except Exception as error:
                number, why = signals.received(), world().blamed(error)
                if number is not None and not isinstance(why, RankFailed):  # it stops the sweep, whatever went wrong
                    text = f"stopped by {number.name}; no checkpoint: {error}"
                    raise signals.Interrupted(number, text) from error
                raise

    def _meter(self) -> TrainingMeter:
        return TrainingMeter(
            self.directory.name, self.config, self.clock, self.method.headline, self.progress.step, self._watch,
            self.window, world().first,
        )  # fmt: skip

    def _tell(self, meter: TrainingMeter) -> None:
        """Log and evaluate where it is due after a step."""
        done = self.progress.step
        if done % self.config.execution.log_every_steps == 0 or done == self.clock.total_steps:
            self._flush()
        if self.schedule.evaluates_after(done, self.clock):
            self._check_finite()
            self._evaluate(meter)

    def _is_late(self, watch: Stopwatch) -> bool:
        return watch.elapsed() >= self.config.execution.checkpoint_every_seconds

    def _save_where_due(self, watch: Stopwatch, late: bool) -> None:
        """A checkpoint after a step: when the time (then it is late) or the number of steps has come."""
        every, done = self.config.execution.checkpoint_every_steps, self.progress.step
        due = late or (every and done % every == 0)
        if due and done != self.clock.total_steps:
            self._save(watch)

    def _save(self, watch: Stopwatch) -> None:
        self._check_finite()
        settle_statistics(self.method)
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
        clip, total_steps = clip_groups(self.optimizer, self.schedule.clip_norm), self.clock.total_steps
        prepare(self.method)

        def plain(step: int) -> Tensor:
            with self._watch.on("data"):
                batch = self.loader.batch(step)
            one, again = partial(self._optimize, step, batch, clip), partial(self._again, batch)
            first = step == 0 and self._parts == world().size == 1
            return self.window.values(checked_first(self.method, one, again) if first else one())

        if not self.schedule.graph:
            return plain
        tape = Tape(self.config.seed, total_steps, self.device, self.config.method.name)
        take = CapturedStep(
            lambda batch, ctx: self.window.values(self._update(batch, ctx, clip)), self.loader, self.optimizer, tape,
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
        return self._update(batch, self._context(step), clip)

    def _context(self, step: int) -> Context:
        seed, total_steps = self.config.seed, self.clock.total_steps
        seed_step(seed, step)
        return Context(seed, step, total_steps, self.device, self.ramps.factors(step / total_steps), world().part)

    def _again(self, batch: Batch) -> Step:
        with eager(), autocast(self.device, self.schedule.precision):
            return self.method(batch, self._context(0))  # type: ignore[no-any-return]

    def _update(self, batch: Batch, ctx: Context, clip: Mapping[str, list[Tensor]]) -> Step:
        """One optimizer step. Nothing here waits for the device, and no number of the host is used but `ctx`'s."""

        def around() -> contextlib.AbstractContextManager[object]:
            if self.schedule.compile is not None:
                torch.compiler.cudagraph_mark_step_begin()  # what the last pass's graphs gave may be overwritten
            return autocast(self.device, self.schedule.precision)

        if self._parts > 1:
            self.optimizer.zero_grad(set_to_none=True)
            out = gradients(self.method, batch, ctx, self._parts, self._backward, around)
        else:
            with around():
                out = self.method(batch, ctx)
            self.optimizer.zero_grad(set_to_none=True)
            self._backward(out.losses)
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

    def _backward(self, losses: Mapping[str, Tensor]) -> None:
        if isinstance(self.optimizer, DOT):
            self.optimizer.backward(*parted(self.method, losses))
        else:
            self.method.backward(losses, self.scaler.scale)

    @torch.no_grad()
    def _probe(self, batch: Batch) -> None:
        averaged = contextlib.nullcontext() if self.ema is None else self.ema.applied()
        uncompiled = contextlib.nullcontext() if self.schedule.compile is None else eager()
        self.method.eval()
        with averaged, uncompiled, autocast(self.device, self.schedule.precision):
            self.method.probe(batch)
        self.method.train()

    # ----------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, meter: TrainingMeter) -> None:
        with self._watch.on("eval"):
            metrics = self._evaluated()
        meter.evaluated(metrics)

    def _evaluated(self) -> dict[str, float]:
        """All networks. A signal breaks it off: nothing has changed then, and it is done again before the next step."""
        before, self.unevaluated = random_state(self.device), True
        try:
            logits = self._logits()
        except signals.PutOff:
            set_random_state(before, self.device)
            raise
        self.unevaluated = False
        metrics = world().once(lambda: {**self.evaluator.metrics(logits), **choice_metrics(self.method)})
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
                fitted = world().once(lambda: {n: t.item() for n, t in self.evaluator.temperatures(logits).items()})
                temperatures = {f"val/{net}/temperature": value for net, value in fitted.items()}
                progress.best_on_val = {"step": progress.step, "metrics": {**metrics, **temperatures}}
                if self.schedule.evaluates_more_than_once:
                    self.best = self._files()
        self._write(metrics)
        return metrics

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
            return {name: network.saved() for name, network in self.method.kept().items()}

    def final_logits(self) -> dict[tuple[str, str], Tensor]:
        """(split, net) -> logits of all networks after the last step."""
        return self._last or self._logits()  # a run may have been stopped between its last step and its record

    def _logits(self) -> dict[tuple[str, str], Tensor]:
        """With an EMA, `<net>` has the averaged weights and `<net>_raw` the live ones."""
        settle_statistics(self.method)
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

    def _check_finite(self) -> None:
        """Stop at the first step whose loss was NaN or infinite; one transfer for the whole window."""
        self.window.check(self.progress.step, self.rate.factor)

    def _flush(self) -> None:
        self._check_finite()
        values, last = self.window.taken(), self.progress.step - 1
        factors = self.ramps.factors(last / self.clock.total_steps)
        weights = {f"train/{key}": factor * self.config.weights[key] for key, factor in factors.items()}
        self._write({**values, "train/lr": self._rates(last)[0], **weights})

    def _write(self, values: dict[str, float]) -> None:
        if not world().first:
            return
        self.still_ours()
        self.log.write(self.progress.step, values)
        self.tracking.log(self.progress.step, values)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self) -> None:
        world().once(self._write_checkpoint)  # a launcher ends all where one has ended: the others wait

    def _write_checkpoint(self) -> None:
        self.still_ours()
        self.checkpoint.save(state_of(self))

    def _resume(self) -> None:
        world().first_then(self._restore)
        if odd := world().alike(f"step of {self.checkpoint.key}", self.progress.step):
            told = ", ".join(f"{step} on rank {rank}" for rank, step in odd.items())
            remedy = "execution.outputs must lie on a file system that all machines share"
            raise KdrunError(f"{self.checkpoint.folder}: ranks begin with other steps ({told}); {remedy}")

    def _restore(self) -> None:
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
