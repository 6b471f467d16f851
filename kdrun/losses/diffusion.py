"""Parts of a diffusion model of features (B, C, H, W): its noise, its steps, and the networks of DiffKD."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

STEPS = 1000  # of the forward process
START, END = 1e-4, 2e-2  # variances of its first and its last step, linear between


def kept_shares() -> Tensor:
    """alpha-bar, (STEPS,) float32: the share of a feature's variance that is left after t + 1 steps."""
    return (1 - torch.linspace(START, END, STEPS, dtype=torch.float64)).cumprod(0).float()


def times(steps: int) -> list[int]:
    """The times of a denoising in so many steps, from the middle of the process down to 0: 400, 300, ... of five."""
    return [k * (STEPS // (2 * steps)) for k in reversed(range(steps))]


def denoised(x: Tensor, predict: Callable[[Tensor, int], Tensor], kept: Tensor, at: Sequence[int]) -> Tensor:
    """DDIM without new noise (Song et al. 2021, arXiv 2010.02502): from each time to the next, at last to no noise.

    Args:
        x: (B, C, H, W).
        predict: the noise in (x, time).
        kept: what `kept_shares` gives.
        at: times, falling.
    """
    for k, time in enumerate(at):
        noise, share = predict(x, time), kept[time]
        clean = (x - (1 - share).sqrt() * noise) / share.sqrt()
        after = kept[at[k + 1]] if k + 1 < len(at) else torch.ones_like(share)
        x = after.sqrt() * clean + (1 - after).sqrt() * noise
    return x


def noisy(x: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """sqrt(alpha-bar) x + sqrt(1 - alpha-bar) noise. `kept`: (B,)."""
    kept = kept[:, None, None, None]
    return kept.sqrt() * x + (1 - kept).sqrt() * noise


def _layers(*channels: int, side: int = 1) -> list[nn.Module]:
    """Convolutions between these, each with batch normalization and ReLU; the second one has this side."""
    out: list[nn.Module] = []
    for k, (before, after) in enumerate(pairwise(channels)):
        of = side if k == 1 else 1
        out += [nn.Conv2d(before, after, of, padding=of // 2), nn.BatchNorm2d(after), nn.ReLU()]
    return out


class Residual(nn.Module):
    """x + a bottleneck of convolutions of side 1, 3 and 1."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.block = nn.Sequential(*_layers(channels, inner, inner, channels, side=3)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(self.block(x))


class Denoiser(nn.Module):
    """The noise in a feature at a time, whose embedding is added to it.

    Args:
        spatial: of maps; else of vectors as (B, C, 1, 1).
    """

    def __init__(self, channels: int, spatial: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(STEPS, channels)
        if spatial:
            layers = [Residual(channels, 4), Residual(channels, 4), *_layers(channels, channels)[:-1]]
        else:
            wide = 4 * channels
            first = _layers(channels, wide, channels)[:-1]
            layers = [*first, *_layers(channels, wide), nn.Conv2d(wide, channels, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, time: Tensor | int) -> Tensor:
        """`time`: (B,) int64, or one for all."""
        found: Tensor = self.embedding(time) if isinstance(time, Tensor) else self.embedding.weight[time]
        out: Tensor = self.layers(x + found.view(-1, x.shape[1], 1, 1))
        return out


class NoiseAdapter(nn.Module):
    """The share of a student's feature, in (0, 1), that the denoising starts from; the rest is noise. -> (B,)."""

    def __init__(self, channels: int, spatial: bool) -> None:
        super().__init__()
        inner = [Residual(channels, 8)] if spatial else _layers(channels, 2 * channels, channels)[:-1]
        self.features = nn.Sequential(*inner)
        self.shares = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        shares: Tensor = self.shares(self.features(x).mean((2, 3)))
        return shares.softmax(1)[:, 0]
