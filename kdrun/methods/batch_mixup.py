"""Mixup within a list of batches (Berthelot et al. 2019, MixMatch, arXiv 1905.02249): each image with one of any batch.

x~ = l x + (1 - l) x_j and y~ likewise, where j is a permutation of all images of the list and l = max(l', 1 - l'),
l' ~ Beta(alpha, alpha), so that an image has the larger share in its own mixture.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kdrun.core.world import world
from kdrun.data.views.mix import blended
from kdrun.data.views.view import View
from kdrun.methods.step import Context


class LargerShare(nn.Module):
    """Uniform numbers (N,) in [0, 1) to shares max(l, 1 - l), l ~ Beta(alpha, alpha): a table of the quantiles, made
    once, so that a step needs nothing of the host. Between its points it is linear; it is off by 1e-4 at most."""

    POINTS = 4096
    table: Tensor
    """(POINTS + 1,), of the smaller share."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        import numpy as np
        from scipy.special import betaincinv

        # near 0 the quantile goes as u^(1 / alpha), which may be steep, and is not in u^(1 / power)
        self.power = max(alpha, 1.0)
        points = np.linspace(0, 1, self.POINTS + 1) ** self.power
        values = betaincinv(alpha, alpha, points / 2).astype(np.float32)
        self.register_buffer("table", torch.tensor(values.tolist()), persistent=False)

    def forward(self, uniform: Tensor) -> Tensor:
        at = uniform ** (1 / self.power) * self.POINTS
        below = at.long().clamp(max=self.POINTS - 1)
        return 1 - torch.lerp(self.table[below], self.table[below + 1], (at - below).to(self.table.dtype))


class BatchMixup(nn.Module):
    """
    Args:
        per: what a share is drawn for: each image, or once a step for all of them.
    """

    def __init__(self, alpha: float, per: Literal["sample", "batch"]) -> None:
        super().__init__()
        self.share = LargerShare(alpha)
        self.per = per

    @torch.no_grad()
    def forward(
        self, views: Sequence[View], targets: Sequence[Tensor], ctx: Context
    ) -> tuple[list[View], list[Tensor]]:
        """The mixed views, and their labels (B, C). Over several ranks the list is that of all of them, in the order in
        which one process has it: partners are of any rank, so raw pixels and labels are gathered.

        Args:
            targets: (B, C) probabilities of each view.
        """
        here = world()
        images, labels = ([here.gathered(values) for values in given] for given in ([v.pixels for v in views], targets))
        all_images, all_labels = torch.cat(images), torch.cat(labels)
        uniform = here.gathered(ctx.draw(sum(len(view.index) for view in views), 2))
        partner, share = uniform[:, 0].argsort(stable=True), self.share(uniform[:, 1])
        if self.per == "batch":
            share = share[:1].expand(len(share))
        mixed, mixed_labels, first = [], [], 0
        for view, target, whole in zip(views, targets, images, strict=True):
            own = here.part.rows(len(whole))
            rows = slice(first + own.start, first + own.stop)
            part, other = share[rows].float(), partner[rows]
            mixed.append(View(blended(part, view.pixels, all_images[other]), view.index))
            mixed_labels.append(torch.lerp(all_labels[other], target, part[:, None].to(target.dtype)))
            first += len(whole)
        return mixed, mixed_labels


def in_passes(sizes: Sequence[int], interleave: bool, device: torch.device) -> Tensor:
    """(P, n) int64: which rows of the batches, one behind the other, go through the network in each of P passes.

    Args:
        sizes: of the batches on this rank; n is the first one's, the others' are multiples of it.
        interleave: each pass has rows of all batches, the same number of them on every rank; false: of one.
    """
    n = sizes[0]
    batches = torch.arange(sum(sizes), device=device).split(list(sizes))
    places = torch.cat([rows.view(n, -1) for rows in batches], 1)  # (n, P)
    if interleave:
        passes = torch.arange(places.shape[1], device=device)
        image = torch.arange(n, device=device) + world().rank * n
        places = places.gather(1, (passes - image[:, None]) % len(passes))
    return places.T
