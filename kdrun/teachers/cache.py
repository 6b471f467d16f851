"""What a frozen teacher says of stored views, computed once: outputs/artifacts/teacher_outputs (see `teacher.cache`).

A float16 array in a file that is mapped into memory, shared by every run with the same teacher, images and views.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdrun.config.run import RunConfig
from kdrun.core.artifacts import Artifact
from kdrun.core.device import autocast
from kdrun.core.errors import ConfigError
from kdrun.core.hashing import file_sha256
from kdrun.core.progress import Meter
from kdrun.data.residency import SHARE, free_memory
from kdrun.data.views.recipes import Weak
from kdrun.data.views.stored import StoredViews
from kdrun.data.views.view import View, rows
from kdrun.teachers.wrap import Tempered

VERSION = 1  # raise it when what is kept changes: it is part of the artifact's name
FILE = "logits.npy"


@dataclass(frozen=True)
class Kept:
    """Logits of the stored views of some images."""

    values: Tensor
    """(M, K, C + 1) float16: logits less their mean over the classes, and that mean, which so costs no digits."""
    row: Tensor
    """(N,) int64, row of each training image in `values`."""
    temperature: float = 1.0
    """What the kept logits are divided by when they are read."""

    def __call__(self, index: Tensor, replay: Tensor) -> Tensor:
        """(B,), (B,) int64 -> (B, C) float32."""
        found = self.values[self.row[index], replay].float()
        return (found[:, :-1] + found[:, -1:]) / self.temperature


def stored_views(config: RunConfig, recipe: Any, num_train: int) -> StoredViews | None:
    """The views that `teacher.cache` stands for. Raises ConfigError for `clean` where views are random."""
    cache = config.teacher.cache
    if not cache.draws:
        return None
    if cache.mode == "clean" and not (isinstance(recipe, Weak) and recipe.pad == 0 and not recipe.flip):
        random, remedy = "crops at random scales (views.weak.scale)", "choose"
        if isinstance(recipe, Weak):
            random = f"pad={recipe.pad}, flip={str(recipe.flip).lower()}"
            remedy = "set views.weak.pad=0 views.weak.flip=false, or"
        raise ConfigError(
            f"teacher.cache.mode: clean is for views without randomness, and views.weak has {random}; {remedy} "
            "mode=views"
        )
    return StoredViews(recipe, num_train, cache.draws)


def refuse_features(config: RunConfig, asked: Sequence[str]) -> None:
    """Raises ConfigError where a loss term, or how sure the teacher is, asks for what is not kept."""
    if config.teacher.cache.draws and asked:
        raise ConfigError(
            f"teacher.cache.mode: only logits are kept, and the teacher's {asked[0]} is asked for; set it to off"
        )


def keep(
    network: nn.Module, views: StoredViews, images: Tensor, index: Tensor, num_classes: int, device: torch.device,
    batch_size: int, precision: str, outputs: Path,
) -> tuple[Kept, dict[str, Any]]:  # fmt: skip
    """The teacher's logits of the stored views of `images[index]`, read if some run made them.

    What is kept knows nothing of `teacher.temperature`, so teachers that differ in it share it.

    Args:
        network: the teacher's own, frozen, on `device`.
        images: (N, H, W, C) uint8, the whole train array, on `device` or on the host.
        index: (M,) int64 on the CPU, sorted.
        device: the training device.

    Returns:
        What to ask, and figures for the record.

    Raises:
        ConfigError: more than the device takes, or beyond float16.
    """
    temperature = 1.0
    if isinstance(network, Tempered):
        network, temperature = network.network, float(network.temperature)  # type: ignore[arg-type]
    shape = (len(index), views.count, num_classes + 1)
    size = 2 * math.prod(shape)
    if device.type != "cpu" and size > SHARE * free_memory(device):
        raise ConfigError(
            f"teacher.cache: {views.count} views of {len(index)} images are {size / 1e9:.1f} GB of logits, too much "
            f"for {device}; give a smaller num_views, or set mode to off"
        )
    spec = _spec(network, views, images, index, batch_size, precision)

    def build(folder: Path) -> dict[str, Any]:
        array = np.lib.format.open_memmap(folder / FILE, mode="w+", dtype=np.float16, shape=shape)
        with Meter("the teacher's logits", views.count * len(index), "views") as meter:
            for k in range(views.count):
                for first in range(0, len(index), batch_size):
                    part = index[first : first + batch_size]
                    drawn, at = views.params(part, torch.full_like(part, k)), torch.arange(len(part), device=device)
                    view = View(views.recipe.apply(rows(images, part, device), at, drawn), part.to(device))
                    array[first : first + len(part), k] = _values(network, view, precision).cpu().numpy()
                    meter.update(len(part))
        array.flush()
        return {}

    def read(folder: Path, spec: dict[str, Any]) -> Tensor:
        if "sha256" in spec and file_sha256(folder / FILE) != spec["sha256"]:  # from before all artifacts had checksums
            raise ValueError(f"the content of {FILE} has changed")
        array = np.load(folder / FILE, mmap_mode="c", allow_pickle=False)  # nobody writes; torch wants it writable
        if array.shape != shape or array.dtype != np.float16:
            raise ValueError(f"{FILE}: {array.dtype} {array.shape}, expected float16 {shape}")
        return torch.from_numpy(array)

    artifact = Artifact.of(outputs, "teacher_outputs", spec)
    values = artifact.value(build, read)
    row = torch.zeros(views.num_train, dtype=torch.int64)
    row[index] = torch.arange(len(index))
    figures = {"key": artifact.key, "images": len(index), "views": views.count, "bytes": size}
    return Kept(values.to(device), row.to(device), temperature), figures


def _spec(
    network: nn.Module, views: StoredViews, images: Tensor, index: Tensor, batch_size: int, precision: str
) -> dict[str, Any]:
    """Everything that the logits depend on."""
    recipe: dict[str, Any] = (
        asdict(views.recipe) if is_dataclass(views.recipe) and not isinstance(views.recipe, type) else {}
    )
    return {
        "version": VERSION, "teacher": fingerprint(network), "images": pixels_hash(images, index, batch_size),
        "index": hashlib.sha256(index.numpy().tobytes()).hexdigest(), "num_train": views.num_train,
        "views": {"name": views.NAME, "count": views.count, "kind": type(views.recipe).__name__, **recipe},
        "precision": precision,
    }  # fmt: skip


@torch.no_grad()
def _values(network: nn.Module, view: View, precision: str) -> Tensor:
    """(B, C + 1) float32: logits less their mean over the classes, and that mean. ConfigError: beyond float16."""
    with autocast(view.pixels.device, precision):
        logits = network(view).logits.float()
    mean = logits.mean(1, keepdim=True)
    values = torch.cat([logits - mean, mean], 1)
    if values.abs().max() > torch.finfo(torch.float16).max:
        raise ConfigError("teacher.cache.mode: its logits are beyond float16; set it to off")
    return values


def pixels_hash(images: Tensor, index: Tensor, batch_size: int) -> str:
    """sha256 of `images[index]`, read in batches: packed images may be more than the memory."""
    digest = hashlib.sha256()
    for part in index.split(batch_size):
        digest.update(images[part.to(images.device)].cpu().numpy().tobytes())
    return digest.hexdigest()


def fingerprint(network: nn.Module) -> str:
    """sha256 of what decides a network's outputs: its structure, sizes, weights and buffers."""
    digest = hashlib.sha256(repr(network).encode())
    for name, module in network.named_modules():
        own = {key: getattr(module, key, None) for key in ("size", "scale", "resize", "temperature")}
        digest.update(f"{name} {own}".encode())
    state: Mapping[str, Tensor] = dict(network.named_parameters()) | dict(network.named_buffers())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
