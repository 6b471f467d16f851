"""Infinite streams of batches: a batch is a pure function of (seed, step), so resuming needs no state.

Every batch is full; an epoch is N/B steps, which may be a fraction. Images are uint8, resident on the training device,
or on the host, from which those of a batch are fetched, or they are files, which worker processes decode ahead.
"""

import signal
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdrun.config import MixConfig
from kdrun.data.dataset import Arrays
from kdrun.data.files import fit, read_rgb
from kdrun.data.mix import Mix
from kdrun.data.splits import Split
from kdrun.data.streamed import ImageFiles, refuse
from kdrun.data.views import (
    Batch,
    FileCrop,
    Recipe,
    Samples,
    Source,
    StoredViews,
    Strong,
    Unmixed,
    View,
    join,
    rows,
)  # fmt: skip
from kdrun.device import send
from kdrun.errors import ConfigError, allowed
from kdrun.seeding import generator


class Stream:
    """Batches of one split.

    Args:
        images: (N, H, W, C) uint8: the whole train array, or its files.
        targets: (N,) int64 on the training device, or None for an unlabeled stream.
        index: (M,) int64 on the CPU: positions that belong to the stream.
        recipes: view name -> recipe.
        extra: artifacts by name, (N, ...) on the training device, looked up for each image.
        mix: how the images of a batch are mixed, all views alike; None: they are not.
        device: the training device; None: that of the images.
        stored: where the weak views come from, one after the other epoch by epoch; None: they are drawn afresh.
    """

    def __init__(
        self, name: str, images: Source, targets: Tensor | None, index: Tensor, batch_size: int,
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

    def for_workers(self) -> "Stream":
        """A stream that decodes the same, without what is on the training device."""
        return Stream(self.name, self.images, None, self.index, self.batch_size, self.recipes, self.seed)

    def batch(self, step: int) -> Samples:
        """The samples of 0-based `step`, views drawn afresh."""
        return self.batches(range(step, step + 1))[0]

    def batches(self, steps: range, decoded: "Decoded | None" = None) -> list[Samples]:
        """The samples of several steps, their views made in one go: on an accelerator one set of kernels for all.

        Args:
            decoded: of a stream of files and one step: what `decode` gave; None: it is asked now.
        """
        device = self.device
        positions = torch.cat([self.positions(step) for step in steps])
        index = at = send(positions, device)
        images: Mapping[str, Tensor]  # what each view is made from
        if isinstance(self.images, ImageFiles):
            decoded = self.decode(steps[0]) if decoded is None else decoded
            refuse(decoded.unreadable)
            sent = {name: send(pixels, device) for name, pixels in decoded.pixels.items()}
            images = {name: sent[name if name in sent else WHOLE] for name in self.recipes}
            at = torch.arange(len(positions), device=device)
        elif self.images.device.type != device.type:
            images = dict.fromkeys(self.recipes, rows(self.images, positions, device))
            at = torch.arange(len(positions), device=device)
        else:
            images = dict.fromkeys(self.recipes, self.images)
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
                params = join([self._draw(name, recipe, step) for step in steps])
            pixels = recipe.apply(images[name], at, params)
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

    def _draw(self, name: str, recipe: Recipe, step: int) -> Any:
        return recipe.draw(generator(self.seed, "views", self.name, name, step), self.batch_size)

    def decode(self, step: int) -> "Decoded":
        """Of a stream of files: the pixels that the views of a step are made from, each file read once."""
        files = self.images
        if not isinstance(files, ImageFiles):
            return Decoded({}, [])
        crops: dict[str, tuple[FileCrop, Any]] = {}
        for name, recipe in self.recipes.items():
            crop = recipe.weak if isinstance(recipe, Strong) else recipe
            if isinstance(crop, FileCrop):
                params = self._draw(name, recipe, step)
                crops[name] = crop, params.weak if isinstance(recipe, Strong) else params
        sizes = {name: crop.size for name, (crop, _) in crops.items()}
        if len(crops) < len(self.recipes):
            sizes[WHOLE] = files.size
        out = {name: np.empty((self.batch_size, size, size, 3), np.uint8) for name, size in sizes.items()}
        unreadable = []
        for k, position in enumerate(self.positions(step).tolist()):
            image = read_rgb(files.path(position))
            if isinstance(image, str):
                unreadable.append(image)
                continue
            for name, (crop, params) in crops.items():
                out[name][k] = crop.cut(image, params, k)
            if WHOLE in out:
                out[WHOLE][k] = fit(image, files.size, files.crop)
        return Decoded({name: torch.from_numpy(pixels) for name, pixels in out.items()}, unreadable)

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


WHOLE = ""  # among views: images as they are, for views that are made from those


class Decoded(NamedTuple):
    """The files of one batch of a stream."""

    pixels: dict[str, Tensor]
    """View name -> (B, size, size, 3) uint8; `WHOLE`: for all views that are not cut out of the files."""
    unreadable: list[str]
    """`path (what is wrong)`; the pixels of these are arbitrary."""


class Steps(Dataset[dict[str, Decoded]]):
    """What workers do: item k is the decoded files of step k of every stream."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self.streams = dict(streams)

    def __getitem__(self, step: int) -> dict[str, Decoded]:
        return {name: stream.decode(step) for name, stream in self.streams.items()}


class Decoder:
    """The decoded files of one step after the other, by worker processes, pinned where the training device is CUDA.

    Workers end with `close`, and by themselves when the run's process is gone.
    """

    def __init__(self, streams: Mapping[str, Stream], workers: int, total_steps: int | None) -> None:
        # A copy without what workers have no use for: they are forked or sent it.
        self._steps = Steps({name: stream.for_workers() for name, stream in streams.items()})
        self._workers = workers
        self._last = total_steps
        self._pin = any(stream.device.type == "cuda" for stream in streams.values())
        self._next: int | None = None
        self._made: Iterator[dict[str, Decoded]] | None = None

    def step(self, step: int) -> dict[str, Decoded]:
        """Steps are asked for in order, or the workers begin anew."""
        if not self._workers or (self._last is not None and step >= self._last):
            return self._steps[step]
        if self._made is None or self._next != step:
            self.close()
            self._made = self._begin(step)
        self._next = step + 1
        return next(self._made)

    def _begin(self, step: int) -> Iterator[dict[str, Decoded]]:
        last = self._last if self._last is not None else step + ENDLESS
        loader = DataLoader(
            self._steps, batch_size=None, sampler=range(step, last), num_workers=self._workers, pin_memory=self._pin,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # else a number of torch's global generator would be used up
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # as any loader
            return iter(loader)

    def close(self) -> None:
        """Ends the workers."""
        made, self._made = self._made, None
        if made is not None:
            made._shutdown_workers()  # type: ignore[attr-defined]  # a reference in a traceback would keep them alive


ENDLESS = 1 << 40  # steps


def _as_it_is(item: dict[str, Decoded]) -> dict[str, Decoded]:
    return item


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches all processes of a terminal: the run finishes its step and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        files = [stream.images for stream in self.streams.values() if isinstance(stream.images, ImageFiles)]
        self._decoder = Decoder(self.streams, files[0].workers, total_steps) if files else None
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
        """Ends the thread and the workers."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        if self._decoder is not None:
            self._decoder.close()

    def _within(self, step: int) -> bool:
        return self.total_steps is None or step < self.total_steps

    def _make(self, first: int) -> dict[int, Batch]:
        last = first + self.block if self.total_steps is None else min(first + self.block, self.total_steps)
        steps = range(first, max(last, first + 1))
        decoded = {} if self._decoder is None else self._decoder.step(first)
        made = {name: stream.batches(steps, decoded.get(name)) for name, stream in self.streams.items()}
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
    wanted: Mapping[str, tuple[str, ...]], arrays: Arrays, split: Split, images: Source, batch_sizes: Mapping[str, int],
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
