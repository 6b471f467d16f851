"""Heads beside a network's own classifier: features (B, dim) to logits (B, classes)."""

from torch import Tensor, nn, randn
from torch.nn import functional as F


class CosineHead(nn.Module):
    """cos(z, w_c) / zeta."""

    def __init__(self, dim: int, classes: int, zeta: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(classes, dim) / dim**0.5)
        self.zeta = zeta

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features), F.normalize(self.weight)) / self.zeta


class NarrowHead(nn.Module):
    """Linear 200, dropout 0.1, batch normalisation, ReLU, Linear: the nonlinear auxiliary head of DHKD's code."""

    WIDTH = 200
    DROPPED = 0.1

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, self.WIDTH)
        self.norm = nn.BatchNorm1d(self.WIDTH)
        self.last = nn.Linear(self.WIDTH, classes)

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, dim) -> (B, classes).

        Args:
            noise: (B, WIDTH) uniform in [0, 1), what is dropped; None: nothing.
        """
        hidden = self.first(features)
        if noise is not None:
            hidden = hidden * (noise >= self.DROPPED) / (1 - self.DROPPED)
        out: Tensor = self.last(F.relu(self.norm(hidden)))
        return out


def hidden_head(dim: int, classes: int, slope: float = 0.0) -> nn.Sequential:
    """One hidden layer as wide as the features.

    Args:
        slope: of its activation below 0.
    """
    return nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(slope) if slope else nn.ReLU(), nn.Linear(dim, classes))


def make_head(kind: str, dim: int, classes: int, zeta: float) -> nn.Module:
    """The KD head, of (B, dim)."""
    if kind == "cosine":
        return CosineHead(dim, classes, zeta)
    if kind == "mlp":
        return hidden_head(dim, classes)
    return nn.Linear(dim, classes)
