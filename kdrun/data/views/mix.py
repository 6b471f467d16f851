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
from kdrun.data.views.box import in_box


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


@dataclass(frozen=True)
class Mixture:
    """What was drawn for the images of a batch, or for some of them."""

    mix: Mix
    partner: Tensor
    """(B,) int64, place of x_j in the batch."""
    share: Tensor
    """(B,) float32, lambda: what of x~ and of its label is the image's own."""
    box: Tensor
    """(B, 4) int64, top, bottom, left and right of what CutMix takes from x_j; of mixup empty."""
    own: Tensor | None = None
    """(B,) int64, place of x among the images at hand, where there are others too; None: they are those."""
    other: Tensor | None = None
    """(B,) int64, place of x_j there; None: `partner`."""

    def of(self, rows: slice) -> tuple["Mixture", Tensor]:
        """Of these of the images, and (n,) int64 the places in the batch of those that they are made of, which are to
        be at hand: themselves, and then the partners that are not among them."""
        own, partner = torch.arange(len(self.partner))[rows], self.partner[rows]
        asked = torch.cat([own, partner[(partner < own[0]) | (partner > own[-1])]])
        place = torch.empty_like(self.partner)
        place[asked] = torch.arange(len(asked))
        return Mixture(self.mix, partner, self.share[rows], self.box[rows], place[own], place[partner]), asked

    @classmethod
    def joined(cls, mixtures: "Sequence[Mixture]", at_hand: Sequence[int]) -> "Mixture":
        """Of several batches, each mixed within itself, one after the other.

        Args:
            at_hand: how many images of each batch are.
        """
        firsts = list(accumulate(at_hand, initial=0))[:-1]
        others = [m.partner if m.other is None else m.other for m in mixtures]
        own = [m.own + first for m, first in zip(mixtures, firsts, strict=True) if m.own is not None]
        return cls(
            mixtures[0].mix,
            torch.cat([m.partner for m in mixtures]),
            torch.cat([m.share for m in mixtures]),
            torch.cat([m.box for m in mixtures]),
            torch.cat(own) if own else None,
            torch.cat([other + first for other, first in zip(others, firsts, strict=True)]),
        )

    def kept(self, values: Tensor) -> Tensor:
        """Of the images at hand those that are mixed."""
        return values if self.own is None else values[self.own]

    def images(self, pixels: Tensor) -> Tensor:
        """(M, C, H, W) uint8 in channels_last memory, the images at hand -> (B, C, H, W), likewise float32 in [0, 1] of
        mixup, uint8 of CutMix alone."""
        at_hand, kind = pixels.permute(0, 2, 3, 1), self.mix.config.kind
        own, other = self.kept(at_hand), self._others(at_hand)
        if kind == "mixup":
            mixed = blended(self.share, own, other)
        else:
            mixed = torch.where(in_box(self.box, *self.mix.size)[..., None], other, own)
            if kind == "mixup_or_cutmix":
                # where CutMix took nothing, lambda is 1 or mixup's
                top, bottom, left, right = self.box.unbind(1)
                cut = (bottom > top) & (right > left)
                mixed = blended(torch.where(cut, 1.0, self.share), mixed, other)
        return mixed.permute(0, 3, 1, 2)

    def split(self, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
        """(place of x_j, lambda) of each batch, of these sizes, that was mixed within itself."""
        return list(zip(self.partner.split(sizes), self.share.split(sizes), strict=True))

    def labels(self, target: Tensor) -> Tensor:
        """(M,) int64, of the images at hand -> (B, classes) float32."""
        at_hand = (target[:, None] == torch.arange(self.mix.num_classes, device=target.device)).float()
        share = self.share[:, None]
        return share * self.kept(at_hand) + (1 - share) * self._others(at_hand)

    def _others(self, at_hand: Tensor) -> Tensor:
        return at_hand[self.partner if self.other is None else self.other]


def blended(share: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """(B,), images (B, ., ., .) uint8, likewise -> float32 in [0, 1]."""
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
