"""One step and one prediction of a run without memory: what only step 0 would find is found in the check."""

import logging
import re
from typing import Any

import torch
from torch import Tensor

from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import WORD, line_in_plugin
from kdrun.core.world import alone
from kdrun.data.views.view import Batch, Samples, Unmixed, View
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step
from kdrun.training.assembly import Assembly
from kdrun.training.distributed import parts_seen
from kdrun.training.tape import Tape
from kdrun.training.waiting import nothing_waits

log = logging.getLogger(__name__)
PAGE = "see docs/extend/method.md"


def rehearse(outline: Assembly) -> None:
    """Run a step of the method, and what it predicts, on the meta device, with the batch sizes of the run.

    Only what is sure is refused: a part that looks at its numbers cannot be rehearsed, and the run will tell.

    Raises:
        ConfigError: batches that a normalisation does not take; parts of a plug-in that do not give what is wanted.
    """
    method, config = outline.method, outline.config
    if not method.needed.trains:
        return
    name = f"method={config.method.name}"
    if type(method).step is Method.step:
        raise ConfigError(f"{name}: it has no step(batch, ctx), which gives the losses of a batch; {PAGE}")
    size = config.schedule.batch_size
    try:
        for sizes in outline.batch_sizes:
            size = sizes.get("labeled", size)
            batch = _batch(outline, {stream: count // parts_seen(config) for stream, count in sizes.items()})
            with torch.random.fork_rng(devices=[]), torch.device("meta"), alone():
                _refuse_step(_step(outline, batch), name)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            seen = next(iter(batch.values())).views
            with torch.no_grad():
                _refuse_predictions(method.eval().predict(next(iter(seen.values()))), name, outline.arrays.num_classes)
    except KdrunError:
        raise
    except Exception as error:
        _explain(error, name, size, config.schedule.batch_size)
    finally:
        method.train()


def _step(outline: Assembly, batch: Batch) -> Step:
    """A step; one that is to be captured is looked at for what cannot be."""
    method, config, device = outline.method.train(), outline.config, torch.device("meta")
    total_steps = max(outline.clock.total_steps, 1)
    if not config.schedule.graph:
        out: Step = method(batch, Context(config.seed, 0, total_steps, device))
        return out
    tape = Tape(config.seed, total_steps, device, config.method.name)
    told = tape.told(0, {})
    with nothing_waits(tape.refusal):
        return method(batch, tape.context(told, recorded=0))  # type: ignore[no-any-return]


def networks_told(outline: Assembly) -> set[str]:
    """The networks that a run tells figures of; empty where only the run knows."""
    method, config = outline.method, outline.config
    if not method.needed.trains:
        return set()
    try:
        batch = _batch(outline, outline.batch_sizes[0])
        with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
            nets = set(method.eval().predict(next(iter(next(iter(batch.values())).views.values()))))
    except Exception as error:
        log.debug("method=%s cannot be rehearsed (%s: %s)", config.method.name, type(error).__name__, error)
        return set()
    finally:
        method.train()
    averaged = {f"{net}_raw" for net in nets} if config.schedule.ema_decay is not None else set()
    return nets | averaged | ({"teacher"} if outline.teacher is not None else set())


def _explain(error: Exception, name: str, size: int, batch_size: int) -> None:
    """Refuse what is sure.

    Args:
        size: of the labeled batch that failed.
        batch_size: of whole ones.
    """
    if "Expected more than 1 value per channel" in str(error):
        if size < batch_size:
            raise ConfigError(
                f"schedule.last_batch: small leaves a last batch of {size}, of which batch normalisation sees one "
                "value of a channel; set it to full, or give another schedule.batch_size"
            ) from None
        raise ConfigError(
            f"schedule.batch_size: {batch_size}: batch normalisation sees one value of a channel; give a larger batch, "
            "or a network without it"
        ) from None
    if isinstance(error, NotImplementedError) or "meta" in str(error):
        log.debug("%s cannot be rehearsed (%s)", name, error)
        return
    place = line_in_plugin(error)
    if place is None:  # kdrun's own, which may look at its numbers: the run will tell
        log.debug("%s cannot be rehearsed (%s: %s)", name, type(error).__name__, error)
        return
    hint = "; pair.teacher is there where needs says teacher=True" if str(error) in _WITHOUT_TEACHER else ""
    raise ConfigError(f"plugins: {place}: {type(error).__name__}: {error}{hint}") from error


_WITHOUT_TEACHER = {f"'NoneType' object has no attribute '{name}'" for name in ("logits", "features")}


class _Unmade(dict[str, Tensor]):
    """What `before` would have made."""

    def __missing__(self, name: str) -> Tensor:
        raise NotImplementedError(f"{name} is made before the first step")


def _batch(outline: Assembly, sizes: dict[str, int]) -> Batch:
    config, arrays = outline.config, outline.arrays
    mixes = config.views.mix.mixes
    batch: Batch = {}
    with torch.device("meta"):
        for stream, views in config.needs.streams.items():
            size = sizes[stream]
            shape = (size, arrays.train_images.shape[3], *outline.size)
            index = torch.zeros(size, dtype=torch.int64)
            pixels = torch.empty(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
            unmixed = Unmixed(pixels, index, torch.empty(size)) if mixes else None
            shown = pixels.float() if mixes and config.views.mix.blends else pixels
            target = None
            if stream == "labeled":
                target = torch.empty(size, arrays.num_classes) if mixes else index
            made = {view: View(shown, index, None, unmixed) for view in views}
            batch[stream] = Samples(made, target, _Unmade())
    return batch


def _refuse_step(out: Step, name: str) -> None:
    if not isinstance(out.losses, dict) or not out.losses:
        raise ConfigError(f"{name}: step gives no losses, expected Step({{name: scalar}}); {PAGE}")
    for label, loss in out.losses.items():
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            raise ConfigError(f"{name}: step: the loss {label!r} is {shown(loss)}, expected a scalar tensor; {PAGE}")
    if not any(loss.requires_grad for loss in out.losses.values()):
        raise ConfigError(f"{name}: step: no loss has a gradient: none depends on what is trained; {PAGE}")


def _refuse_predictions(out: Any, name: str, num_classes: int) -> None:
    if not isinstance(out, dict) or not out:
        raise ConfigError(f"{name}: predict gives a {type(out).__name__}, expected {{network: logits}}; {PAGE}")
    for net, logits in out.items():
        if WORD.fullmatch(str(net)) is None:
            raise ConfigError(f"{name}: predict: {str(net)[:80]!r} names a file, so give it letters, digits, _ and -")
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ConfigError(f"{name}: predict: {net} is {shown(logits)}, expected logits (B, {num_classes}); {PAGE}")


def shown(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return re.sub("torch.", "", f"{value.dtype} {tuple(value.shape)}")
    return f"a {type(value).__name__}"
