"""Infinite streams of batches: a batch is a pure function of (seed, step), so resuming needs no state.

Every batch is full and an epoch N/B steps, which may be a fraction, unless the schedule says otherwise (epoch,
last_batch). Images are uint8, resident on the training device,
or on the host, from which those of a batch are fetched, or they are files, which worker processes decode ahead.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from kdrun.config.needs import recipe_of
from kdrun.config.views import MixConfig
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.world import world
from kdrun.data.arrays import Arrays
from kdrun.data.decoder import Decoder
from kdrun.data.splits import Split
from kdrun.data.stream import Drawn, Stream
from kdrun.data.streamed import ImageFiles
from kdrun.data.views.mix import Mix
from kdrun.data.views.stored import StoredViews
from kdrun.data.views.view import Batch, Recipe, Source


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
        self._drawing: tuple[int, Future[dict[str, Drawn]]] | None = None

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

    def drawn(self, step: int) -> dict[str, Drawn]:
        """What the host gives to the batch of a step, for `made`; that of the next one is drawn meanwhile."""
        drawing, self._drawing = self._drawing, None
        ready = {} if drawing is None else {drawing[0]: drawing[1].result()}  # or two would decode at once
        found = ready[step] if step in ready else self._draw(step)
        if self.total_steps is not None and step + 1 < self.total_steps:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "views", _one_thread)
            self._drawing = step + 1, self._thread.submit(self._draw, step + 1)
        return found

    def made(self, drawn: Mapping[str, Drawn]) -> Batch:
        """The batch that was `drawn`, on whatever device that is now."""
        return {name: stream.made(drawn[name])[0] for name, stream in self.streams.items()}

    def give(self, extra: Mapping[str, Tensor]) -> None:
        """Values for `Samples.extra` of all batches from now on: name -> (N, ...) on the training device."""
        if self._ahead is not None:
            self._ahead.result()
        self._made, self._ahead = {}, None
        for stream in self.streams.values():
            stream.extra |= extra

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

    def _draw(self, step: int) -> dict[str, Drawn]:
        decoded = {} if self._decoder is None else self._decoder.step(step)
        steps = range(step, step + 1)
        return {name: stream.drawn(steps, decoded.get(name), fixed=True) for name, stream in self.streams.items()}


class RepeatedBatch(Loader):
    """The batch of the first step, at each step."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        super().__init__(streams, total_steps=1)
        self._batch: Batch | None = None
        self._drawn: dict[str, Drawn] | None = None

    def batch(self, step: int) -> Batch:
        if self._batch is None:
            self._batch = super().batch(0)
        return self._batch

    def drawn(self, step: int) -> dict[str, Drawn]:
        if self._drawn is None:
            self._drawn = super().drawn(0)
        return self._drawn

    def give(self, extra: Mapping[str, Tensor]) -> None:
        super().give(extra)
        self._batch = None


def _one_thread() -> None:
    # The loop's own threads compute the step meanwhile; a second team of threads would fight them for the cores.
    torch.set_num_threads(1)


SPLITS = ("labeled", "unlabeled")


def check_streams(wanted: Mapping[str, tuple[str, ...]], recipes: Mapping[str, Recipe]) -> None:
    """Refuse streams and views that do not exist."""
    for name, views in wanted.items():
        if name not in SPLITS:
            raise ConfigError(f"stream {name}: unknown{allowed(name, SPLITS)}")
        for view in views:
            if recipe_of(view) not in recipes:
                raise ConfigError(f"stream {name}: unknown view {view!r}{allowed(view, recipes)}")


def make_loader(
    wanted: Mapping[str, tuple[str, ...]], arrays: Arrays, split: Split, images: Source, batch_sizes: Mapping[str, int],
    recipes: Mapping[str, Recipe], seed: int, total_steps: int | None = None,
    mix: MixConfig | None = None, device: torch.device | None = None, size: tuple[int, int] | None = None,
    stored: StoredViews | None = None, small_last: bool = False, shown: str = "weak", repeat: bool = False,
) -> Loader:  # fmt: skip
    """Build the streams that a method declares, of the part of each batch that this process has. Only the labeled
    stream has targets, and only of labeled images.

    Args:
        device: the training device; None: that of the images.
        size: of the views; None: that of the images.
        stored: where the weak views come from; None: they are drawn afresh.
        small_last: whether the last labeled batch of an epoch has what is left of the labeled images.
        shown: the recipe of what is called the weak view of labeled images.
        repeat: whether each step has the batch of the first.
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
        chosen = {view: recipes[shown if (name, view) == ("labeled", "weak") else recipe_of(view)] for view in views}
        streams[name] = Stream(
            name, images, targets, index, batch_sizes[name], chosen, seed, mix=mixed, device=device, stored=stored,
            small_last=small_last and name == "labeled", part=world().part,
        )  # fmt: skip
    return RepeatedBatch(streams) if repeat else Loader(streams, total_steps)
