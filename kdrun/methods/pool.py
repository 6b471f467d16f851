"""What a method is given before its first step: other runs, the pool of unlabeled images, batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdrun.data.views.center import Center
from kdrun.data.views.view import Batch, Source


@dataclass(frozen=True)
class Pool:
    """The unlabeled images of a run, for what a method makes of them before training. Without their hidden labels."""

    images: Source
    """(N, H, W, C) uint8: the whole train array."""
    index: Tensor
    """(M,) int64 on the CPU, positions of the pool."""
    num_classes: int
    batch_size: int
    precision: str
    outputs: Path
    """Folder that holds `artifacts`."""
    judge: Callable[[Tensor, Tensor], dict[str, Any]]
    """`judge(index, label)`: `coverage` of the pool; `precision` against the hidden labels (None: nothing known)."""
    warn: Callable[[str], None]
    """Says a line in the log and keeps it in the record."""
    device: torch.device
    """The training device."""
    center: Center | None = None
    """What networks see of an image in an evaluation; None: all of it."""


@dataclass(frozen=True)
class Required:
    """A finished run that `requires` names."""

    directory: Path
    record: Mapping[str, Any]
    key: str


@dataclass(frozen=True, kw_only=True)
class Start:
    """What `Method.before` is given."""

    required: Mapping[str, Required]
    """By role, as `requires` names them."""
    pool: Pool
    batches: Callable[[int], Batch]
    """Step -> its batch."""
    first: int
    """The first number that is no step of this run: batches from there on are drawn for nothing else."""
    fresh: bool
    """False where the run goes on from a checkpoint, which has restored the parameters and buffers."""
