"""A step over several processes: what is refused of it, batch normalisation over all rows, gradients averaged.

Each rank has its rows of the global batch. Gradients are averaged after the backward pass, in one piece and always in
the same order, so a run that goes on from a checkpoint adds up as it would have; a parameter that a step does not use
is no special case, as it would be for DistributedDataParallel.
"""

import sys
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch import distributed as dist

from kdrun.config.needs import Needs, says_of_ranks
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.core.seeding import seed_everything, subseed
from kdrun.core.world import world
from kdrun.losses.labels import full
from kdrun.losses.term import Term
from kdrun.methods.method import Method
from kdrun.training.accumulation import prepare_passes, steps_in, whole
from kdrun.training.assembly import Assembly

# --------------------------------------------------------------------------------------------------------- refusals


def refuse_over_ranks(outline: Assembly) -> None:
    """Refuse what a run cannot do over the ranks of this world, or with `schedule.accumulate`.

    Raises:
        ConfigError: a captured step, a batch that has no equal parts, a part that does not say how it is computed.
    """
    config, schedule, count = outline.config, outline.config.schedule, world().size
    if not config.needs.trains or (count == 1 and schedule.accumulate == 1):
        return
    if schedule.graph:
        raise ConfigError(
            f"schedule.graph: a captured step is one process's, and this run has {count}; set it to false"
        )
    errors = [
        f"{key} ({_file(cls)}) does not say how it is computed over {_shares(config)}: it needs over_ranks in its "
        f"needs, see docs/extend/{page}.md; or do without"
        for key, cls, needs, page in _parts(config)
        if needs.over_ranks == "no" or not says_of_ranks(cls)
    ]
    if errors:
        raise ConfigError(*errors)
    if schedule.accumulate > steps_in(config) and schedule.compile is not None:
        raise ConfigError(
            "schedule.accumulate: a step of this run is no mean over images, so networks take its batch in chunks, "
            "which are not compiled; set schedule.compile to null"
        )
    count *= steps_in(config)
    for sizes in outline.batch_sizes:
        for stream, size in sizes.items():
            if size % count:
                raise ConfigError(_indivisible(outline, stream, size, count))


def _parts(config: RunConfig) -> list[tuple[str, type, Needs, str]]:
    """Method and loss terms: key, class, what it needs, page for authors."""
    method: type[Method[Any]] = config.method_class
    parts: list[tuple[str, type, Needs, str]] = [
        (f"method={config.method.name}", method, method.needs(config), "method")
    ]
    for label, needs in config.term_needs.items():
        name = config.losses[label].name
        parts.append((f"loss.{label}: {name}", lookup("loss", name, f"loss.{label}.name"), needs, "loss"))
    return parts


def _file(cls: type) -> str:
    return str(getattr(sys.modules.get(cls.__module__), "__file__", cls.__module__))


def parts_seen(config: RunConfig) -> int:
    """In how many parts batch normalisation sees a batch."""
    # where networks take it in chunks, all streams share them
    return steps_in(config) * (world().size if config.schedule.batch_norm == "local" else 1)


def _shares(config: RunConfig) -> str:
    """Among whom a batch is divided, in words."""
    count, parts = world().size, config.schedule.accumulate
    if count == 1:
        return f"schedule.accumulate={parts} parts"
    return f"{count} processes" + (f" with schedule.accumulate={parts}" if parts > 1 else "")


def _indivisible(outline: Assembly, stream: str, size: int, count: int) -> str:
    shares = _shares(outline.config)
    if size != outline.batch_sizes[0][stream]:
        return (
            f"schedule.last_batch: small leaves a last batch of {size} {stream} images, which {shares} cannot share "
            "equally; set it to full, or give another schedule.batch_size or dataset.num_labels"
        )
    return (
        f"schedule.batch_size: a step has {size} {stream} images, which {shares} cannot share equally; give a "
        f"multiple of {count}, or take another number"
    )


# ------------------------------------------------------------------------------------------------------------ a step


def prepare(method: Method[Any]) -> None:
    """Before the first step of this process: passes and batch normalisation as the schedule has them, and over several
    ranks weights and buffers those of rank 0."""
    here, schedule = world(), method.config.schedule
    if schedule.accumulate > 1 and whole(method.config):
        prepare_passes(method, schedule.accumulate)
    if here.size == 1:
        return
    if schedule.batch_norm == "global":
        synchronise(method)
    here.share([*method.parameters(), *method.buffers()])


def seed_step(seed: int, step: int) -> None:
    """Over several ranks: what a step draws from the global generators (dropout, say) is its own on each of them, and
    depends on nothing that was drawn before."""
    if world().size > 1:
        seed_everything(subseed(seed, "step of a rank", step, world().rank))


def average_gradients(method: Method[Any]) -> None:
    """What `backward` has left becomes the mean over ranks, unless it has seen to that itself."""
    if world().size > 1 and not method.averages:
        world().average([p.grad for p in method.parameters() if p.requires_grad])


def settle_statistics(method: nn.Module) -> None:
    """Before an evaluation or a checkpoint: the running statistics of batch normalisation are those of rank 0, which
    differ from those of others with batch_norm=local."""
    found = [module for module in method.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    world().share([buffer for module in found for buffer in module.buffers()])


# ---------------------------------------------------------------------------------------------- batch normalisation


def synchronise(method: nn.Module) -> None:
    """Have all batch normalisation in a method, that of its students and of its loss terms, see the rows of all ranks;
    a term that is given those has them already. Parameters and buffers stay the same objects under the same names."""
    gathered = [m for m in method.modules() if isinstance(m, Term) and m.needed.over_ranks == "gathered"]
    plain = [
        (part, name, child) for term in gathered for part in term.modules() for name, child in part.named_children()
    ]
    for name, child in list(method.named_children()):
        method.add_module(name, convert_sync_batchnorm(child))
    for part, name, child in plain:
        part.add_module(name, child)
    for module in method.modules():
        if isinstance(module, nn.SyncBatchNorm) and next(module.buffers()).device.type == "cpu":
            module.__class__ = HostBatchNorm


class HostBatchNorm(nn.SyncBatchNorm):
    """SyncBatchNorm on the CPU, for which torch has none; also timm's, with what follows it."""

    def forward(self, input: Tensor) -> Tensor:
        out = self._normalised(input) if self.training else super().forward(input)
        for then in ("drop", "act"):
            out = getattr(self, then)(out) if hasattr(self, then) else out
        return out

    def _normalised(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        x, dims = full(input), [d for d in range(input.ndim) if d != 1]
        # (ranks, 2, C): of equally many numbers each, so plain means of them are those of all
        own = torch.stack([x.mean(dims), x.var(dims, correction=0)])
        means, variances = _OfRanks.apply(own[None], world().rank).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), world().size * x.numel() // x.shape[1])
        shape = [1, -1, *[1] * (input.ndim - 2)]
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        out: Tensor = (x - mean.view(shape)) * scale.view(shape)
        return (out if self.bias is None else out + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


class _OfRanks(torch.autograd.Function):
    """(1, ...) -> (ranks, ...). Unlike `World.gathered` for what each rank goes on with in its own way: the gradient is
    the sum of those of all ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int) -> Tensor:
        ctx.rank = rank
        return world().gathered(own.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total)
        rank: int = ctx.rank
        return total[rank : rank + 1], None
