"""Mixup and CutMix: each image of a batch with another one of the same batch, on the training device.

mixup_or_cutmix: one of the two, drawn for each image or for the batch.

mixup (Zhang et al. 2018, arXiv 1710.09412): x~ = lambda x + (1 - lambda) x_j. cutmix (Yun et al. 2019, arXiv
1905.04899): x~ is x with a box of x_j, and lambda the share of pixels that are x's. Labels: y~ = lambda y +
(1 - lambda) y_j. j is a random permutation of the batch, so an image may meet itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Generator, Tensor

from kdrun.config.views import MixConfig
from kdrun.core.device import send


@dataclass(frozen=True)
class Mix:
    """How batches of images of one size are mixed. All random numbers are drawn on the CPU."""

    config: MixConfig
    size: tuple[int, int]
    num_classes: int

    def draw(self, generator: Generator, n: int) -> "Mixture":
        """For a batch of `n` images."""
        from scipy.special import betaincinv

        config, (height, width) = self.config, self.size
        partner = torch.randperm(n, generator=generator)
        mixed = torch.rand(n, generator=generator) < config.share
        turns = config.kind == "mixup_or_cutmix"
        drawn = (4 if turns else 3, 1 if config.per == "batch" else n)
        uniform = torch.rand(drawn, generator=generator, dtype=torch.float64)
        cut = uniform[-1] < config.cutmix_share if turns else torch.tensor(False)
        alpha = np.where(cut.numpy(), config.cutmix_alpha, config.alpha)
        # by the inverse of its distribution function, because torch's Beta takes no generator
        share = torch.as_tensor(betaincinv(alpha, alpha, uniform[0].numpy())).expand(n)
        share = torch.where(mixed, share, 1.0)
        box = torch.zeros(n, 4, dtype=torch.int64)
        if config.kind != "mixup":
            top, bottom = _interval(uniform[1], (1 - share).sqrt(), height)
            left, right = _interval(uniform[2], (1 - share).sqrt(), width)
            box = torch.stack([top, bottom, left, right], 1)
            area = 1 - (bottom - top) * (right - left) / (height * width)
            share, box = (torch.where(cut, area, share), box * cut.long()[:, None]) if turns else (area, box)
        return Mixture(self, partner, share.float(), box)

    def draw_steps(self, generators: Sequence[Generator], sizes: Sequence[int], device: torch.device) -> "Mixture":
        """For batches of these sizes one after the other, each mixed within itself; on the device."""
        drawn = [self.draw(generator, n) for generator, n in zip(generators, sizes, strict=True)]
        firsts = accumulate(sizes, initial=0)
        partner = torch.cat([mixture.partner + first for mixture, first in zip(drawn, firsts, strict=False)])
        share, box = torch.cat([m.share for m in drawn]), torch.cat([m.box for m in drawn])
        return Mixture(self, *(send(tensor, device) for tensor in (partner, share, box)))


@dataclass(frozen=True)
class Mixture:
    """What was drawn for the images of a batch."""

    mix: Mix
    partner: Tensor
    """(B,) int64, place of x_j in the batch."""
    share: Tensor
    """(B,) float32, lambda: what of x~ and of its label is the image's own."""
    box: Tensor
    """(B, 4) int64, top, bottom, left and right of what CutMix takes from x_j; of mixup empty."""

    def images(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 in channels_last memory -> likewise float32 in [0, 1] of mixup, uint8 of CutMix alone."""
        own, kind = pixels.permute(0, 2, 3, 1), self.mix.config.kind
        other = own[self.partner]
        if kind == "mixup":
            mixed = _blended(self.share, own, other)
        else:
            row, column = (torch.arange(side, device=pixels.device) for side in self.mix.size)
            top, bottom, left, right = self.box.T[:, :, None]
            inside = ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]
            mixed = torch.where(inside[..., None], other, own)
            if kind == "mixup_or_cutmix":
                # where CutMix took nothing, lambda is 1 or mixup's
                cut = ((bottom > top) & (right > left)).squeeze(1)
                mixed = _blended(torch.where(cut, 1.0, self.share), mixed, other)
        return mixed.permute(0, 3, 1, 2)

    def split(self, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
        """(place of x_j, lambda) of each batch, of these sizes, that was mixed within itself."""
        parts = zip(self.partner.split(sizes), self.share.split(sizes), accumulate(sizes, initial=0), strict=False)
        return [(partner - first, share) for partner, share, first in parts]

    def labels(self, target: Tensor) -> Tensor:
        """(B,) int64 -> (B, classes) float32."""
        own = (target[:, None] == torch.arange(self.mix.num_classes, device=target.device)).float()
        share = self.share[:, None]
        return share * own + (1 - share) * own[self.partner]


def _blended(share: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """(B,), (B, H, W, C) uint8, likewise -> float32 in [0, 1]."""
    share = share[:, None, None, None]
    # Each image scaled as networks do it, so that with lambda = 1 they see what they would see unmixed. In place, for
    # fresh memory would cost more than what is computed.
    return own.float().div_(255).mul_(share).add_(other.float().div_(255).mul_(1 - share))


def _interval(uniform: Tensor, share: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where CutMix's box begins and ends: `share` of the length about a uniform pixel, cut off at the image's border.

    As in the authors' code, which halves the side in whole pixels. (1,) or (n,), (n,) -> (n,), (n,).
    """
    center, half = (uniform * length).long(), (share * length).long() // 2
    return (center - half).clamp(0, length), (center + half).clamp(0, length)
