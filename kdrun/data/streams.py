"""Infinite streams of batches: a batch is a pure function of (seed, step), so resuming needs no state.

Every batch is full; an epoch is N/B steps, which may be a fraction. Images are uint8, resident on the training device,
or on the host, from which those of a batch are fetched.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from kdrun.config import MixConfig
from kdrun.data.dataset import Arrays
from kdrun.data.mix import Mix
from kdrun.data.splits import Split
from kdrun.data.views import Batch, Recipe, Samples, StoredViews, Unmixed, View, join, rows
from kdrun.device import send
from kdrun.errors import ConfigError, allowed
from kdrun.seeding import generator


class Stream:
    """Batches of one split.

    Args:
        images: (N, H, W, C) uint8: the whole train array.
        targets: (N,) int64 on the training device, or None for an unlabeled stream.
        index: (M,) int64 on the CPU: positions that belong to the stream.
        recipes: view name -> recipe.
        extra: artifacts by name, (N, ...) on the training device, looked up for each image.
        mix: how the images of a batch are mixed, all views alike; None: they are not.
        device: the training device; None: that of the images.
        stored: where the weak views come from, one after the other epoch by epoch; None: they are drawn afresh.
    """

    def __init__(
        self, name: str, images: Tensor, targets: Tensor | None, index: Tensor, batch_size: int,
        recipes: Mapping[str, Recipe], seed: int, extra: Mapping[str, Tensor] | None = None,
        mix: Mix | None = None, device: torch.device | None = None, stored: StoredViews | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.device = images.device if device is None else device
        self.images = images
        self.targets = targets
        self.index = index
        self.batch_size = batch_size
        self.recipes = dict(recipes)
        self.seed = seed
        self.extra = dict(extra or {})
        self.mix = mix
        self.stored = stored
        self._orders: dict[int, Tensor] = {}

    def batch(self, step: int) -> Samples:
        """The samples of 0-based `step`, views drawn afresh."""
        return self.batches(range(step, step + 1))[0]

    def batches(self, steps: range) -> list[Samples]:
        """The samples of several steps, their views made in one go: on an accelerator one set of kernels for all."""
        device, images = self.device, self.images
        positions = torch.cat([self.positions(step) for step in steps])
        index = at = send(positions, device)
        if images.device.type != device.type:
            images, at = rows(images, positions, device), torch.arange(len(positions), device=device)
        parts: dict[str, tuple[Tensor, ...]] = {"index": index.split(self.batch_size)}
        mixture = None
        if self.mix is not None:
            generators = [generator(self.seed, "mix", self.name, step) for step in steps]
            mixture = self.mix.draw_steps(generators, self.batch_size, device)
        if self.targets is not None:
            target = self.targets[index]
            target = target if mixture is None else mixture.labels(target)
            parts["target"] = target.split(self.batch_size)
        for name, recipe in self.recipes.items():
            if self.stored is not None and name == self.stored.NAME:
                which = torch.cat([self.epochs(step) for step in steps]) % self.stored.count
                parts[f"replay {name}"] = send(which, device).split(self.batch_size)
                params = self.stored.params(positions, which)
            else:
                params = join([
                    recipe.draw(generator(self.seed, "views", self.name, name, step), self.batch_size) for step in steps
                ])  # fmt: skip
            pixels = recipe.apply(images, at, params)
            if mixture is not None:
                parts[f"unmixed {name}"] = pixels.split(self.batch_size)
                pixels = mixture.images(pixels)
            parts[f"view {name}"] = pixels.split(self.batch_size)
        extra = {name: values[index].split(self.batch_size) for name, values in self.extra.items()}
        mixtures = None if mixture is None else mixture.split(self.batch_size)

        def view(name: str, k: int) -> View:
            unmixed = None if mixtures is None else Unmixed(parts[f"unmixed {name}"][k], *mixtures[k])
            replay = parts.get(f"replay {name}")
            return View(parts[f"view {name}"][k], parts["index"][k], None if replay is None else replay[k], unmixed)

        return [
            Samples(
                {name: view(name, k) for name in self.recipes},
                parts["target"][k] if "target" in parts else None,
                {name: values[k] for name, values in extra.items()},
            )
            for k in range(len(steps))
        ]

    def positions(self, step: int) -> Tensor:
        """(B,) int64 positions in the train array; each epoch is a new permutation of the stream's images."""
        size = len(self.index)
        ticket = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        first, last = step * self.batch_size // size, ((step + 1) * self.batch_size - 1) // size
        parts = [self._order(epoch)[ticket[ticket // size == epoch] % size] for epoch in range(first, last + 1)]
        return torch.cat(parts)

    def epochs(self, step: int) -> Tensor:
        """(B,) int64: the how-manieth pass over the stream's images each of the step is in."""
        return torch.arange(step * self.batch_size, (step + 1) * self.batch_size) // len(self.index)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            order = torch.randperm(len(self.index), generator=generator(self.seed, "order", self.name, epoch))
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = self.index[order]
        return self._orders[epoch]


class Loader:
    """The streams of a run, ahead of the loop: several steps at once where an accelerator has the images, else one step
    in a thread.

    Args:
        total_steps: where the run ends; nothing is made beyond it.
    """

    BLOCK = 8  # steps augmented at once on an accelerator

    def __init__(self, streams: Mapping[str, Stream], total_steps: int | None = None) -> None:
        self.streams = dict(streams)
        self.total_steps = total_steps
        on_host = all(stream.images.device.type == "cpu" for stream in self.streams.values())
        self.block = 1 if on_host else self.BLOCK
        self._made: dict[int, Batch] = {}
        self._ahead: Future[dict[int, Batch]] | None = None
        self._thread = ThreadPoolExecutor(1, "views", _one_thread) if on_host and total_steps is not None else None

    def batch(self, step: int) -> Batch:
        """The batch of 0-based `step`; steps are asked for in order, or it takes longer."""
        if step not in self._made and self._ahead is not None:
            self._made = self._ahead.result()
            self._ahead = None
        if step not in self._made:
            self._made = self._make(step)
        batch = self._made.pop(step)
        if self._thread is not None and self._ahead is None and self._within(step + 1):
            self._ahead = self._thread.submit(self._make, step + 1)
        return batch

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _within(self, step: int) -> bool:
        return self.total_steps is None or step < self.total_steps

    def _make(self, first: int) -> dict[int, Batch]:
        last = first + self.block if self.total_steps is None else min(first + self.block, self.total_steps)
        steps = range(first, max(last, first + 1))
        made = {name: stream.batches(steps) for name, stream in self.streams.items()}
        return {step: {name: made[name][k] for name in made} for k, step in enumerate(steps)}


def _one_thread() -> None:
    # The loop's own threads compute the step meanwhile; a second team of threads would fight them for the cores.
    torch.set_num_threads(1)


SPLITS = ("labeled", "unlabeled")


def check_streams(wanted: Mapping[str, tuple[str, ...]], recipes: Mapping[str, Recipe]) -> None:
    """Refuse streams and views that do not exist."""
    for name, views in wanted.items():
        if name not in SPLITS:
            raise ConfigError(f"stream {name}: unknown; {allowed(name, SPLITS)}")
        for view in views:
            if view not in recipes:
                raise ConfigError(f"stream {name}: unknown view {view!r}; {allowed(view, recipes)}")


def make_loader(
    wanted: Mapping[str, tuple[str, ...]], arrays: Arrays, split: Split, images: Tensor, batch_sizes: Mapping[str, int],
    recipes: Mapping[str, Recipe], seed: int, extra: Mapping[str, Tensor] | None = None,
    total_steps: int | None = None, mix: MixConfig | None = None, device: torch.device | None = None,
    size: tuple[int, int] | None = None, stored: StoredViews | None = None,
) -> Loader:  # fmt: skip
    """Build the streams that a method declares. Only the labeled stream has targets, and only of labeled images.

    Args:
        device: the training device; None: that of the images.
        size: of the views; None: that of the images.
        stored: where the weak views come from; None: they are drawn afresh.
    """
    streams = {}
    device = images.device if device is None else device
    mixed = None
    if mix is not None and mix.mixes:
        mixed = Mix(mix, size or (images.shape[1], images.shape[2]), arrays.num_classes)
    for name, views in wanted.items():
        index = torch.from_numpy({"labeled": split.labeled, "unlabeled": split.unlabeled}[name])
        targets = None
        if name == "labeled":
            targets = torch.full((len(arrays.train_labels),), -1, dtype=torch.int64)
            targets[index] = torch.from_numpy(arrays.train_labels)[index]
            targets = targets.to(device)
        chosen = {view: recipes[view] for view in views}
        streams[name] = Stream(
            name, images, targets, index, batch_sizes[name], chosen, seed, extra, mixed, device, stored
        )  # fmt: skip
    return Loader(streams, total_steps)
