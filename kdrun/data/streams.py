"""Infinite streams of batches: a batch is a pure function of (seed, step), so resuming needs no state.

Every batch is full; an epoch is N/B steps, which may be a fraction. Images stay on the training device as uint8.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.data.dataset import Arrays
from kdrun.data.splits import Split
from kdrun.data.views import Batch, Samples, View, Weak, apply, draw
from kdrun.device import send
from kdrun.errors import ConfigError, allowed
from kdrun.seeding import generator


class Stream:
    """Batches of one split.

    Args:
        images: (N, H, W, C) uint8 on the training device: the whole train array.
        targets: (N,) int64 on the training device, or None for an unlabeled stream.
        index: (M,) int64 on the CPU: positions that belong to the stream.
        recipes: view name -> recipe.
    """

    def __init__(
        self, name: str, images: Tensor, targets: Tensor | None, index: Tensor, batch_size: int,
        recipes: Mapping[str, Weak], seed: int,
    ) -> None:  # fmt: skip
        self.name = name
        self.images = images
        self.targets = targets
        self.index = index
        self.batch_size = batch_size
        self.recipes = dict(recipes)
        self.seed = seed
        self._orders: dict[int, Tensor] = {}

    def batch(self, step: int) -> Samples:
        """The samples of 0-based `step`, views drawn afresh."""
        chosen = self.positions(step)
        device = self.images.device
        index = send(chosen, device)
        views = {}
        for name, recipe in self.recipes.items():
            params = draw(recipe, generator(self.seed, "views", self.name, name, step), self.batch_size)
            views[name] = View(apply(self.images, index, recipe, params), index)
        return Samples(views, None if self.targets is None else self.targets[index])

    def positions(self, step: int) -> Tensor:
        """(B,) int64 positions in the train array; each epoch is a new permutation of the stream's images."""
        size = len(self.index)
        ticket = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        first, last = step * self.batch_size // size, ((step + 1) * self.batch_size - 1) // size
        parts = [self._order(epoch)[ticket[ticket // size == epoch] % size] for epoch in range(first, last + 1)]
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            order = torch.randperm(len(self.index), generator=generator(self.seed, "order", self.name, epoch))
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = self.index[order]
        return self._orders[epoch]


@dataclass(frozen=True)
class Loader:
    """The streams of a run."""

    streams: Mapping[str, Stream]

    def batch(self, step: int) -> Batch:
        return {name: stream.batch(step) for name, stream in self.streams.items()}


SPLITS = ("labeled", "unlabeled")


def check_streams(wanted: Mapping[str, tuple[str, ...]], recipes: Mapping[str, Weak]) -> None:
    """Refuse streams and views that do not exist."""
    for name, views in wanted.items():
        if name not in SPLITS:
            raise ConfigError(f"stream {name}: unknown; {allowed(name, SPLITS)}")
        for view in views:
            if view not in recipes:
                raise ConfigError(f"stream {name}: unknown view {view!r}; {allowed(view, recipes)}")


def make_loader(
    wanted: Mapping[str, tuple[str, ...]], arrays: Arrays, split: Split, images: Tensor, batch_sizes: Mapping[str, int],
    recipes: Mapping[str, Weak], seed: int,
) -> Loader:  # fmt: skip
    """Build the streams that a method declares. Only the labeled stream has targets, and only of labeled images."""
    streams = {}
    for name, views in wanted.items():
        index = torch.from_numpy({"labeled": split.labeled, "unlabeled": split.unlabeled}[name])
        targets = None
        if name == "labeled":
            targets = torch.full((len(arrays.train_labels),), -1, dtype=torch.int64)
            targets[index] = torch.from_numpy(arrays.train_labels)[index]
            targets = targets.to(images.device)
        chosen = {view: recipes[view] for view in views}
        streams[name] = Stream(name, images, targets, index, batch_sizes[name], chosen, seed)
    return Loader(streams)
