"""Seeds derived by hashing, so that no two uses of randomness in a run share a stream."""

from __future__ import annotations

import hashlib
import json
import math
import random
from typing import TYPE_CHECKING

from kdrun.core.later import later

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
else:
    torch = later("torch")


def subseed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `subseed(0, "init", "resnet20", "")`."""
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> Generator:
    """A CPU generator for one purpose. Draws are made on the CPU, so they are the same on every device."""
    return torch.Generator().manual_seed(subseed(seed, *purpose))


def normal(uniform: Tensor) -> Tensor:
    """Normal numbers from uniform ones of torch.rand in [0, 1), which are multiples of 2^-24: at their middles, so
    that 0 is not minus infinity; at most 5.4 in size."""
    return math.sqrt(2) * torch.erfinv(2 * uniform - 1 + 2**-24)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (dropout draws from torch's)."""
    import numpy as np

    value = subseed(seed, "global")
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
