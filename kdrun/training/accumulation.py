"""A step whose batch goes through the networks in several parts, one after the other (`schedule.accumulate`).

Where a step is a mean over the rows of its batch, each part is a step of its own, whose gradients are added up. Where
it is not (a statistic or a memory of the batch, a surgery on gradients), the batch stays whole: each student's pass is
made in chunks, whose activations are made again in the backward pass. In both cases the gradient is that of the whole
batch, but for batch normalisation, whose statistics are those of a part.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdrun.config.run import RunConfig
from kdrun.core.world import Part
from kdrun.data.views.view import Batch, View, part_of
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Guesses, Step
from kdrun.models.network import Network
from kdrun.models.output import Output

Backward = Callable[[Mapping[str, Tensor]], None]


def whole(config: RunConfig) -> bool:
    """Whether a batch stays whole, and only the students' passes are made in chunks."""
    return config.needs.over_ranks != "mean"


def steps_in(config: RunConfig) -> int:
    """Parts of a batch that are steps of their own."""
    return 1 if whole(config) else config.schedule.accumulate


def prepare_passes(method: Method[Any], count: int) -> None:
    """Have each student's passes in training made in so many chunks."""
    for network in method.networks().values():
        _in_chunks(network, count)


def gradients(
    method: Method[Any], batch: Batch, ctx: Context, count: int, backward: Backward,
    around: Callable[[], AbstractContextManager[object]],
) -> Step:  # fmt: skip
    """Add up the gradients of so many parts of a batch; what the step of the whole batch gives, detached.

    Args:
        backward: adds the gradients of a step's losses.
        around: what each forward pass is made in.
    """
    found = []
    for k in range(count):
        with around():
            out: Step = method(part_of(batch, Part(k, count)), ctx.within(k, count))
        backward({name: loss / count for name, loss in out.losses.items()})
        losses = {name: loss.detach() for name, loss in out.losses.items()}
        found.append(Step(losses, out.metrics, out.guesses))
    guesses = [step.guesses for step in found if step.guesses is not None]
    return Step(_means([step.losses for step in found]), _means([step.metrics for step in found]), _together(guesses))


def _means(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in values]).mean(0) for name in values[0]}


def _together(guesses: Sequence[Guesses]) -> Guesses | None:
    if not guesses:
        return None
    return Guesses(*(torch.cat([getattr(one, name) for one in guesses]) for name in ("index", "label", "used")))


class _MadeAgain:
    """Around a pass that is made again as it was: running statistics have moved already, so that it moves copies of
    them. Unlike with `kept_statistics`, as many tensors are saved for the backward pass as the first time, which
    checkpoint insists on. Two backward passes enter it twice."""

    def __init__(self, network: Network) -> None:
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        self._tracked = [(module, module.track_running_stats) for module in norms]

    def __enter__(self) -> None:
        self._now = [(module, module.track_running_stats, dict(module._buffers)) for module, _ in self._tracked]
        for module, tracked in self._tracked:
            module.track_running_stats = tracked
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *error: Any) -> None:
        for module, tracked, buffers in self._now:
            module.track_running_stats = tracked
            module._buffers.update(buffers)


def _in_chunks(network: Network, count: int) -> None:
    plain = network.forward

    def forward(view: View | Tensor, features: Sequence[str] = ()) -> Output:
        if not (network.training and torch.is_grad_enabled()):
            return plain(view, features)
        pixels = view.pixels if isinstance(view, View) else view
        outs: list[Output] = [
            checkpoint(
                plain, chunk, features, use_reentrant=False,
                context_fn=lambda: (nullcontext(), _MadeAgain(network)),
            )
            for chunk in pixels.chunk(count)
        ]  # fmt: skip
        kept = {name: torch.cat([out.features[name] for out in outs]) for name in outs[0].features}
        return Output(torch.cat([out.logits for out in outs]), kept)

    network.forward = forward  # type: ignore[method-assign]
