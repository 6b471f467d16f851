"""Trusted pseudo labels (KD-FixMatch, Wang et al. 2023, arXiv 2309.05826, section 3): of a trained outer network's
predictions on the unlabeled pool, those that are confident and whose cluster says the same class.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from kdrun.core.artifacts import Artifact
from kdrun.core.device import autocast
from kdrun.core.files import write_bytes
from kdrun.core.hashing import file_sha256
from kdrun.core.progress import Meter
from kdrun.core.seeding import generator
from kdrun.core.world import world
from kdrun.data.views.view import View, clean_batches
from kdrun.methods.clustering import ClusteringConfig, Unclusterable, dec, kmeans, match_classes
from kdrun.methods.pool import Pool
from kdrun.models.network import Network, load_network
from kdrun.models.weights import read_state

Clustering = Literal["dec", "kmeans"]
Selector = Literal["dec", "kmeans", "confidence", "random"]
VERSION = 1  # raise it when the selection changes: it is part of the artifact's name


@dataclass(frozen=True)
class Selection:
    """How labels are chosen."""

    threshold: float
    """Lowest confidence."""
    selector: Selector
    """What must agree beside it: a deep embedding cluster, a k-means cluster, or nothing (confidence, random)."""
    clustering: ClusteringConfig
    seed: int
    as_many_as: Clustering | None = None
    """Of confidence and random: only as many as this one would leave, the most confident or any; None: all."""

    @property
    def clusters_by(self) -> Clustering | None:
        return self.as_many_as or (self.selector if self.selector in ("dec", "kmeans") else None)


def trusted_labels(weights: Path, outer_key: str, selection: Selection, pool: Pool) -> tuple[Tensor, dict[str, Any]]:
    """The labels that the network in the file `weights` can be trusted with, from outputs/artifacts/trusted if there.

    Returns:
        (N,) int64, -1 where there is none; and spec.json: `coverage`, `precision` against hidden labels, and how.
    """
    spec: dict[str, Any] = {
        "version": VERSION,
        "outer_key": outer_key,
        "net": weights.stem,
        "weights": file_sha256(weights),
        "pool": hashlib.sha256(pool.index.numpy().tobytes()).hexdigest(),
        "select_threshold": selection.threshold,
        "selector": selection.selector,
    }
    if selection.clusters_by:
        spec |= {"clustering": selection.clustering.model_dump(), "seed": selection.seed}
    if selection.as_many_as:
        spec["as_many_as"] = selection.as_many_as

    def build(folder: Path) -> dict[str, Any]:
        warnings: list[str] = []
        found = select(load_network(weights), selection, pool, warnings.append)
        chosen = found["selected"].bool()
        figures = pool.judge(found["index"][chosen], found["label"][chosen])
        write_bytes(folder / "trusted.safetensors", save(found))
        return {**figures, "num_confident": int((found["cluster"] > -2).sum()), "warnings": warnings}

    def read(folder: Path, spec: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        found = read_state(folder / "trusted.safetensors", str(folder / "trusted.safetensors"))
        label = torch.full((len(pool.images),), -1, dtype=torch.int64)
        chosen = found["selected"].bool()
        label[found["index"][chosen]] = found["label"][chosen]
        return label, {"key": folder.name, **spec}

    artifact = Artifact.of(pool.outputs, "trusted", spec)
    label, figures = world().first_then(lambda: artifact.value(build, read))
    for line in figures.pop("warnings", []):  # said by every run that uses the labels, not by their maker alone
        pool.warn(line)
    return label, figures


def select(network: Network, selection: Selection, pool: Pool, warn: Callable[[str], None]) -> dict[str, Tensor]:
    """Predictions on the clean pool and which of them are selected. Where none can be, `warn` is told why.

    Returns:
        index i64, label i64, confidence f32, cluster i32 (-1: confident but not clustered, -2: not confident),
        selected u8; each (M,).
    """
    confidence, label, features = predict(network, pool)
    confident = confidence >= selection.threshold
    cluster = torch.full_like(label, -2, dtype=torch.int32)
    cluster[confident] = -1
    where = confident.nonzero().squeeze(1)
    agreed, why = where, "no image is confident enough"
    if selection.clusters_by:
        try:
            found, classes = _clusters(features[where], label[where], selection, pool.num_classes)
            cluster[where] = found.to(torch.int32)
            agreed, why = where[classes[found.long()] == label[where]], "no cluster confirms its label"
        except Unclusterable as reason:
            agreed, why = where[:0], str(reason)
    if selection.as_many_as:
        agreed = _as_many(len(agreed), where, confidence[where], selection)
    if not len(agreed):
        threshold = f"method.select_threshold={selection.threshold:g}"
        warn(f"{why} ({threshold}): no label is trusted, training goes on as FixMatch")
    selected = torch.zeros(len(label), dtype=torch.uint8)
    selected[agreed] = 1
    return {"index": pool.index, "label": label, "confidence": confidence, "cluster": cluster, "selected": selected}


def _clusters(features: Tensor, label: Tensor, selection: Selection, num_classes: int) -> tuple[Tensor, Tensor]:
    """Cluster (M,) of each image, and class (K,) of each cluster."""
    count = selection.clustering.num_clusters or num_classes
    if selection.clusters_by == "dec":
        found = dec(features, count, selection.seed, selection.clustering, labels=label).assignment
    else:
        found = kmeans(features, count, selection.seed, selection.clustering)
    return found, match_classes(found, label, count, num_classes, selection.clustering.assign)


def _as_many(count: int, where: Tensor, confidence: Tensor, selection: Selection) -> Tensor:
    """`count` of the (M,) images `where`: the most confident ones, or drawn; (count,)."""
    if selection.selector == "confidence":
        return where[confidence.argsort(descending=True, stable=True)[:count]]
    return where[torch.randperm(len(where), generator=generator(selection.seed, "select"))[:count]]


@torch.no_grad()
def predict(network: Network, pool: Pool) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence (M,), predicted class (M,) and the classifier's input (M, D) of the clean pool, on the CPU."""
    device = pool.device
    network.to(device).eval()
    parts = []
    with Meter("predicting the pool", len(pool.index)) as meter:
        for chunk, pixels in clean_batches(pool.images, pool.index.to(device), pool.batch_size, pool.center):
            with autocast(device, pool.precision):
                out = network(View(pixels, chunk), ("prelogits",))
            best = out.logits.softmax(1).max(1)
            parts.append((best.values.cpu(), best.indices.cpu(), out.features["prelogits"].float().cpu()))
            meter.update(len(chunk))
    confidence, label, features = (torch.cat(column) for column in zip(*parts, strict=True))
    return confidence, label, features
