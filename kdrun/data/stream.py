"""Endless batches of one stream, each a pure function of (seed, step)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdrun.core.device import send
from kdrun.core.seeding import generator
from kdrun.core.world import Part
from kdrun.data.images import fit
from kdrun.data.reading import read_rgb
from kdrun.data.streamed import ImageFiles, refuse
from kdrun.data.views.ctaugment import Policy
from kdrun.data.views.mix import Mix, Mixture
from kdrun.data.views.recipes import CtaView, FileCrop, Strong
from kdrun.data.views.stored import StoredViews
from kdrun.data.views.view import Recipe, Samples, Source, Unmixed, View, join, mapped, take
from kdrun.data.views.view import rows as rows_of

WHOLE_BATCH = Part()


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
        small_last: whether the last batch of an epoch has what is left of the images; else the next epoch fills it up.
        part: of each batch that is made here; what is drawn is drawn for all of it.
    """

    def __init__(
        self, name: str, images: Source, targets: Tensor | None, index: Tensor, batch_size: int,
        recipes: Mapping[str, Recipe], seed: int, extra: Mapping[str, Tensor] | None = None,
        mix: Mix | None = None, device: torch.device | None = None, stored: StoredViews | None = None,
        small_last: bool = False, part: Part = WHOLE_BATCH,
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
        self.small_last = small_last
        self.part = part
        self._orders: dict[int, Tensor] = {}

    def for_workers(self) -> "Stream":
        """A stream that decodes the same, without what is on the training device."""
        mix = self.mix if self.part.count > 1 else None  # whose partners are decoded too
        return Stream(
            self.name, self.images, None, self.index, self.batch_size, self.recipes, self.seed, mix=mix,
            small_last=self.small_last, part=self.part,
        )  # fmt: skip

    def batch(self, step: int) -> Samples:
        """The samples of 0-based `step`, views drawn afresh."""
        return self.batches(range(step, step + 1))[0]

    def batches(self, steps: range, decoded: "Decoded | None" = None) -> list[Samples]:
        """The samples of several steps, their views made in one go: on an accelerator one set of kernels for all.

        Args:
            decoded: of a stream of files and one step: what `decode` gave; None: it is asked now.
        """
        return self.made(self.drawn(steps, decoded))

    def drawn(self, steps: range, decoded: "Decoded | None" = None, fixed: bool = False) -> "Drawn":
        """What the host has to do with the batches of several steps; nothing here touches an accelerator.

        Args:
            decoded: as in `batches`.
            fixed: whether the views are to be made by `Recipe.apply_fixed`.
        """
        batches = [self.positions(step) for step in steps]
        at_hand = [self._at_hand(step, len(batch)) for step, batch in zip(steps, batches, strict=True)]
        shown = [rows for rows, _ in at_hand]
        parts = [batch[rows] for batch, rows in zip(batches, shown, strict=True)]
        positions, sizes = torch.cat(parts), tuple(len(batch) // self.part.count for batch in batches)
        images, params, replay, mixture = {}, {}, {}, None
        if isinstance(self.images, ImageFiles):
            decoded = self.decode(steps[0]) if decoded is None else decoded
            refuse(decoded.unreadable)
            images = decoded.pixels
        elif self.images.device.type != self.device.type:
            images = {WHOLE: rows_of(self.images, positions, HOST)}
        if self.mix is not None:
            mixture = Mixture.joined(
                [drawn for _, drawn in at_hand if drawn is not None], [len(part) for part in parts]
            )
        for name, recipe in self.recipes.items():
            if self.stored is not None and name == self.stored.NAME:
                epochs = [self.epochs(step)[rows] for step, rows in zip(steps, shown, strict=True)]
                replay[name] = torch.cat(epochs) % self.stored.count
                params[name] = self.stored.params(positions, replay[name])
            else:
                params[name] = join([
                    self._draw(name, recipe, step, len(batch), rows)
                    for step, batch, rows in zip(steps, batches, shown, strict=True)
                ])  # fmt: skip
            if fixed:
                params[name] = recipe.fixed(params[name])
        return Drawn(positions, images, params, replay, mixture, fixed, sizes)

    def made(self, drawn: "Drawn") -> list[Samples]:
        """The batches that `drawn` stands for.

        Args:
            drawn: on the CPU, or on the training device, where the host then takes no part if it is `fixed`.
        """
        device, to_device, sizes = self.device, partial(send, device=self.device), list(drawn.sizes)
        positions = at = send(drawn.positions, device)
        sent = mapped(to_device, drawn.images)
        if sent:
            at = torch.arange(len(positions), device=device)
        policies: dict[str, list[Policy]] = {}
        mixture: Mixture | None = mapped(to_device, drawn.mixture)
        index = positions if mixture is None else mixture.kept(positions)
        parts: dict[str, tuple[Tensor, ...]] = {"index": index.split(sizes)}
        if self.targets is not None:
            target = self.targets[positions]
            target = target if mixture is None else mixture.labels(target)
            parts["target"] = target.split(sizes)
        for name, recipe in self.recipes.items():
            if name in drawn.replay:
                told = send(drawn.replay[name], device)
                parts[f"replay {name}"] = (told if mixture is None else mixture.kept(told)).split(sizes)
            images: Any = sent[name if name in sent else WHOLE] if sent else self.images
            apply = recipe.apply_fixed if drawn.fixed else recipe.apply
            pixels = apply(images, at, drawn.params[name])
            if mixture is not None:
                parts[f"unmixed {name}"] = mixture.kept(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).split(sizes)
                pixels = mixture.images(pixels)
            parts[f"view {name}"] = pixels.split(sizes)
            if isinstance(recipe, CtaView):
                own = None if drawn.mixture is None else drawn.mixture.own
                chosen = drawn.params[name] if own is None else take(drawn.params[name], own)
                policies[name] = recipe.policy(chosen, drawn.fixed).split(sizes)
        extra = {name: values[index].split(sizes) for name, values in self.extra.items()}
        mixtures = None if mixture is None else mixture.split(sizes)

        def view(name: str, k: int) -> View:
            unmixed = None if mixtures is None else Unmixed(parts[f"unmixed {name}"][k], *mixtures[k])
            replay = parts.get(f"replay {name}")
            policy = policies[name][k] if name in policies else None
            told = None if replay is None else replay[k]
            return View(parts[f"view {name}"][k], parts["index"][k], told, unmixed, policy)

        return [
            Samples(
                {name: view(name, k) for name in self.recipes},
                parts["target"][k] if "target" in parts else None,
                {name: values[k] for name, values in extra.items()},
            )
            for k in range(len(parts["index"]))
        ]

    def _at_hand(self, step: int, size: int) -> tuple[slice | Tensor, Mixture | None]:
        """The rows of a batch of `size` images whose views are made, and how those of this part are mixed."""
        rows = self.part.rows(size)
        if self.mix is None:
            return rows, None
        mixture = self.mix.draw(generator(self.seed, "mix", self.name, step), size)
        if self.part.count == 1:
            return rows, mixture
        own, asked = mixture.of(rows)
        return asked, own

    def _draw(self, name: str, recipe: Recipe, step: int, size: int, rows: slice | Tensor) -> Any:
        """What is drawn for the views of these rows of a batch of `size` images."""
        drawn = recipe.draw(generator(self.seed, "views", self.name, name, step), size)
        return drawn if self.part.count == 1 else take(drawn, rows)

    def decode(self, step: int) -> "Decoded":
        """Of a stream of files: the pixels that the views of a step are made from here, each file read once."""
        files = self.images
        if not isinstance(files, ImageFiles):
            return Decoded({}, [])
        crops: dict[str, tuple[FileCrop, Any]] = {}
        batch = self.positions(step)
        rows, _ = self._at_hand(step, len(batch))
        positions = batch[rows].tolist()
        for name, recipe in self.recipes.items():
            crop = recipe.weak if isinstance(recipe, Strong | CtaView) else recipe
            if isinstance(crop, FileCrop):
                params = self._draw(name, recipe, step, len(batch), rows)
                crops[name] = crop, params if recipe is crop else params.weak
        sizes = {name: crop.size for name, (crop, _) in crops.items()}
        if len(crops) < len(self.recipes):
            sizes[WHOLE] = files.size
        out = {name: np.empty((len(positions), size, size, 3), np.uint8) for name, size in sizes.items()}
        unreadable = []
        for k, position in enumerate(positions):
            image = read_rgb(files.path(position), files.how)
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
        if self.small_last:
            epoch, k = divmod(step, self._whole_batches)
            return self._order(epoch)[k * self.batch_size : (k + 1) * self.batch_size]
        ticket = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        first, last = step * self.batch_size // size, ((step + 1) * self.batch_size - 1) // size
        parts = [self._order(epoch)[ticket[ticket // size == epoch] % size] for epoch in range(first, last + 1)]
        return torch.cat(parts)

    def epochs(self, step: int) -> Tensor:
        """(B,) int64: the how-manieth pass over the stream's images each of the step is in."""
        if self.small_last:
            return torch.full_like(self.positions(step), step // self._whole_batches)
        return torch.arange(step * self.batch_size, (step + 1) * self.batch_size) // len(self.index)

    @property
    def _whole_batches(self) -> int:
        """Batches of an epoch, the last of which may be small."""
        return -(-len(self.index) // self.batch_size)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            order = torch.randperm(len(self.index), generator=generator(self.seed, "order", self.name, epoch))
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = self.index[order]
        return self._orders[epoch]


HOST = torch.device("cpu")
WHOLE = ""  # among views: images as they are, for views that are made from those


@dataclass(frozen=True)
class Drawn:
    """What the host gives to some batches of a stream, for `Stream.made`; all their steps after one another.

    The shapes of its tensors depend on the stream and the number of steps alone.
    """

    positions: Tensor
    """(n,) int64 positions in the train array, of all images at hand (`Mixture`)."""
    images: dict[str, Tensor]
    """View name, or `WHOLE` for all that are not named -> (n, H, W, C) uint8; empty where the device has all images."""
    params: dict[str, Any]
    """View name -> what its recipe drew."""
    replay: dict[str, Tensor]
    """View name -> (n,) int64, which stored draw it is."""
    mixture: Mixture | None
    fixed: bool
    """Whether `params` are for `Recipe.apply_fixed`."""
    sizes: tuple[int, ...]
    """Images of each step that come of it."""


class Decoded(NamedTuple):
    """The files of one batch of a stream."""

    pixels: dict[str, Tensor]
    """View name -> (B, size, size, 3) uint8; `WHOLE`: for all views that are not cut out of the files."""
    unreadable: list[str]
    """`path (what is wrong)`; the pixels of these are arbitrary."""
