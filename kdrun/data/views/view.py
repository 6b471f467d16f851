"""Views: batches of raw pixels, what makes them, and images as an evaluation sees them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from kdrun.core.device import send
from kdrun.data.streamed import ImageFiles
from kdrun.data.views.center import Center
from kdrun.data.views.ctaugment import Policy


@dataclass(frozen=True)
class Unmixed:
    """What the images of a mixed view were made of: x~ = share x + (1 - share) x[partner], of CutMix by area."""

    pixels: Tensor
    """(B, C, H, W) uint8, x: the same views before they were mixed."""
    partner: Tensor
    """(B,) int64, places in this batch."""
    share: Tensor
    """(B,) float32, lambda; 1: not mixed."""


@dataclass(frozen=True)
class View:
    """One view of a batch of images."""

    pixels: Tensor
    """(B, C, H, W) uint8, or float32 in [0, 1] once mixed by mixup (or by turns); not normalised."""
    index: Tensor
    """(B,) int64, position in the dataset's train (or test) array; of a mixed image, that of the first."""
    replay: Tensor | None = None
    """(B,) int64, which stored draw this is; None: fresh."""
    unmixed: Unmixed | None = None
    """None: the images are not mixed."""
    policy: Policy | None = None
    """What is still to be done to the pixels, by what the run has learned; None: nothing."""


@dataclass(frozen=True)
class Samples:
    """What a stream gives at a step."""

    views: dict[str, View]
    target: Tensor | None
    """(B,) int64, or (B, classes) float32 once mixed; None for unlabeled streams."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Artifacts looked up by index, each (B, ...)."""


Batch = dict[str, Samples]
Source = Tensor | ImageFiles  # (N, H, W, C) uint8


class Recipe(Protocol):
    """How a view is made."""

    def draw(self, generator: Generator, n: int) -> Any:
        """The parameters of `n` views, on the CPU: a dataclass of tensors (n, ...)."""

    def apply(self, images: Tensor, index: Tensor, params: Any) -> Tensor:
        """The views of `images[index]`.

        Args:
            images: (N, H, W, C) uint8, the resident dataset, or the images of the batch alone.
            index: (B,) int64 on the same device.

        Returns:
            (B, C, H, W) uint8 in channels_last memory.
        """

    def fixed(self, params: Any) -> Any:
        """What `draw` gave, for `apply_fixed`: tensors whose shapes depend on `n` alone, on the CPU."""

    def apply_fixed(self, images: Tensor, index: Tensor, params: Any) -> Tensor:
        """As `apply`, the same operations whatever was drawn, and no look at it by the host: for a captured step.

        Args:
            params: what `fixed` gave, on the device of the images.
        """


def together(views: Sequence[View]) -> View:
    """Several views as one batch."""
    replays = [view.replay for view in views if view.replay is not None]
    return View(
        torch.cat([view.pixels for view in views]),
        torch.cat([view.index for view in views]),
        torch.cat(replays) if len(replays) == len(views) else None,
    )


def join(params: Sequence[Any]) -> Any:
    """What was drawn for several batches, as if drawn for one."""
    first = params[0]
    if isinstance(first, Tensor):
        return torch.cat(list(params))
    return type(first)(**{f.name: join([getattr(p, f.name) for p in params]) for f in fields(first)})


def take(params: Any, rows: Tensor) -> Any:
    """What was drawn for some of the views.

    Args:
        rows: (B,) int64.
    """
    return mapped(lambda tensor: tensor[rows], params)


def mapped(change: Callable[[Tensor], Tensor], drawn: Any) -> Any:
    """What was drawn, in dicts, lists and dataclasses, with each of its tensors changed."""
    if isinstance(drawn, Tensor):
        return change(drawn)
    if isinstance(drawn, dict):
        return {name: mapped(change, value) for name, value in drawn.items()}
    if isinstance(drawn, list):
        return [mapped(change, value) for value in drawn]
    if is_dataclass(drawn) and not isinstance(drawn, type):
        return replace(drawn, **{f.name: mapped(change, getattr(drawn, f.name)) for f in fields(drawn)})
    return drawn


def rows(images: Source, index: Tensor, device: torch.device) -> Tensor:
    """`images[index]` (B, H, W, C) on `device`, wherever the images are."""
    return send(images.index_select(0, index.to(images.device)), device)


def clean(images: Source, index: Tensor, center: Center | None = None) -> Tensor:
    """`images[index]` on the device of `index` as (B, C, H, W) uint8 in channels_last memory, or their center."""
    return _shown(rows(images, index, index.device), center)


def clean_batches(
    images: Source, index: Tensor, batch_size: int, center: Center | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch of `index` (M,) with its `clean` images; files of the next one are decoded meanwhile."""
    chunks = index.split(batch_size)
    if isinstance(images, Tensor):
        yield from ((chunk, clean(images, chunk, center)) for chunk in chunks)
        return
    for chunk, found in zip(chunks, images.batches([chunk.cpu() for chunk in chunks]), strict=True):
        yield chunk, _shown(send(found, chunk.device), center)


def _shown(images: Tensor, center: Center | None) -> Tensor:
    return (images if center is None else center.cut(images)).permute(0, 3, 1, 2)


Predict = Callable[[View], dict[str, Tensor]]  # network -> logits (B, C)
