"""Which training images are labeled, unlabeled or kept for validation: a pure function of labels and seeds.

The unlabeled pool holds the labeled images too, without their labels (as FixMatch's authors do).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdrun.config.dataset import DatasetConfig
from kdrun.config.run import DebugConfig, RunConfig
from kdrun.core.artifacts import Artifact
from kdrun.core.errors import ConfigError
from kdrun.core.files import atomic_path, read_npz
from kdrun.core.seeding import subseed
from kdrun.data.types import Labels

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Sorted positions in the train array; the test split is the dataset's own."""

    labeled: Index
    unlabeled: Index
    val: Index
    num_test: int

    @property
    def hash(self) -> str:
        """sha256 over the three index arrays, 16 hex digits."""
        digest = hashlib.sha256()
        for name in ("labeled", "unlabeled", "val"):
            index: Index = getattr(self, name)
            digest.update(f"{name}:{len(index)}:".encode() + index.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def num_train(self) -> int:
        """Training images, with and without their labels; `debug.images` takes none of those with them."""
        return len(np.union1d(self.labeled, self.unlabeled))

    def fewer(self, debug: DebugConfig) -> "Split":
        """With no more images than `debug.images` allows; all labeled ones stay, for classes may be few images."""
        left = {name: np.ascontiguousarray(debug.fewer(getattr(self, name))) for name in ("unlabeled", "val")}
        return replace(self, num_test=len(debug.fewer(range(self.num_test))), **left)

    def summary(self, labels: Labels, num_classes: int) -> dict[str, Any]:
        """Sizes, hash and labeled images per class, for the record."""
        return {
            "hash": self.hash,
            "labeled": len(self.labeled),
            "unlabeled": len(self.unlabeled),
            "val": len(self.val),
            "test": self.num_test,
            "labeled_per_class": np.bincount(labels[self.labeled], minlength=num_classes).tolist(),
        }


def make_split(
    config: RunConfig, labels: Labels, num_classes: int, num_test: int, official: Index | None = None,
    folds: Sequence[Index] = (),
) -> Split:  # fmt: skip
    """The split that `config.dataset` asks for. Raises ConfigError where it is impossible.

    Args:
        official: positions of the dataset's own validation images, instead of a draw.
        folds: positions of labeled images that `dataset.fold` chooses.
    """
    others = np.flatnonzero(labels < 0)  # images without labels, behind all others
    labels = labels[: len(labels) - len(others)]
    fold = getattr(config.dataset, "fold", None)
    if fold is None:
        split = _chosen(config, labels, num_classes, num_test, official)
    else:
        split = Split(folds[fold], np.arange(len(labels)), np.empty(0, np.int64), num_test)
        if config.dataset.num_labels != len(split.labeled):
            raise ConfigError(
                f"dataset.num_labels: {config.dataset.num_labels}, but fold {fold} names {len(split.labeled)} labeled "
                "images"
            )
    if config.dataset.joins_pool:
        return replace(split, unlabeled=np.concatenate([split.unlabeled, others]))
    return replace(split, unlabeled=others) if len(others) else split


def _chosen(config: RunConfig, labels: Labels, num_classes: int, num_test: int, official: Index | None) -> Split:
    dataset = config.dataset
    if dataset.split_file is not None:
        return _read(dataset.split_file, dataset, len(labels), num_test)
    val = official
    if val is None:
        val = _stratified(labels, num_classes, dataset.val_fraction, dataset.val_seed)
    pool = np.setdiff1d(np.arange(len(labels)), val)
    if dataset.upstream:
        apart = pool[_stratified(labels[pool], num_classes, dataset.upstream, subseed(dataset.val_seed, "upstream"))]
        pool = apart if dataset.part == "upstream" else np.setdiff1d(pool, apart)
    count = num_labeled(dataset.num_labels, labels[pool], num_classes)
    if count < num_classes:
        raise ConfigError(
            f"dataset.num_labels: {count} is fewer than the {num_classes} classes; give at least {num_classes}"
        )
    if count > len(pool):
        raise ConfigError(
            f"dataset.num_labels: {count} is more than the {len(pool)} training images that validation leaves"
        )
    return Split(_balanced(labels, pool, num_classes, count, config.split_seed), pool, val, num_test)


def num_labeled(wanted: int | str | None, labels: Labels, num_classes: int) -> int:
    """`dataset.num_labels` as a number. Raises ConfigError for more of each class than there are.

    Args:
        labels: those of the images to choose from.
    """
    if wanted is None:
        return len(labels)
    if isinstance(wanted, int):
        return wanted
    if wanted.endswith("%"):
        return int(len(labels) * Decimal(wanted.removesuffix("%")) / 100)
    shots = int(wanted.removesuffix("/class"))
    sizes = np.bincount(labels, minlength=num_classes)
    if shots > sizes.min():
        raise ConfigError(
            f"dataset.num_labels: {wanted}, but class {sizes.argmin()} has {sizes.min()} images without validation; "
            f"give at most {sizes.min()}/class, or {shots * num_classes}: a class that is used up gives way to others"
        )
    return shots * num_classes


def write_split(split: Split, path: Path) -> None:
    """Write the indices as an .npz that `dataset.split_file` reads again."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, labeled=split.labeled, unlabeled=split.unlabeled, val=split.val)


def keep_split(split: Split, summary: Mapping[str, Any], outputs: Path) -> None:
    """The indices as outputs/artifacts/split/<hash>, once for all runs, with `summary` in its spec.json."""
    digest = split.hash

    def build(folder: Path) -> Mapping[str, Any]:
        write_split(split, folder / "split.npz")
        return summary

    def read(folder: Path, _: Mapping[str, Any]) -> None:
        kept = read_npz(folder / "split.npz", "dataset")
        if Split(kept["labeled"], kept["unlabeled"], kept["val"], split.num_test).hash != digest:
            raise ValueError("split.npz holds another split")

    Artifact(outputs / "artifacts" / "split", {"hash": digest}, digest).value(build, read)


def _stratified(labels: Labels, num_classes: int, fraction: float, seed: int) -> Index:
    """round(fraction * N) positions, each class in proportion (largest remainders rounded up)."""
    sizes = np.bincount(labels, minlength=num_classes)
    exact = sizes * fraction
    take = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(take.sum())
    take[np.argsort(-(exact - take), kind="stable")[:missing]] += 1
    return _draw(labels, np.arange(len(labels)), take, np.random.default_rng(subseed(seed, "val")))


def _balanced(labels: Labels, pool: Index, num_classes: int, count: int, seed: int) -> Index:
    """`count` positions of the pool, classes equal to within one image; a class that is used up gives way."""
    rng = np.random.default_rng(subseed(seed, "labeled"))
    sizes = np.bincount(labels[pool], minlength=num_classes)
    level = 0  # every class gives min(size, level) images, and some of the larger ones one more
    while np.minimum(sizes, level + 1).sum() <= count:
        if level >= sizes.max():
            break
        level += 1
    take = np.minimum(sizes, level)
    spare = np.flatnonzero(sizes > level)
    take[rng.permutation(spare)[: count - int(take.sum())]] += 1
    return _draw(labels, pool, take, rng)


def _draw(labels: Labels, pool: Index, take: Index, rng: np.random.Generator) -> Index:
    parts = [rng.permutation(pool[labels[pool] == c])[:n] for c, n in enumerate(take)]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def _read(given: str, dataset: DatasetConfig, num_train: int, num_test: int) -> Split:
    where = f"dataset.split_file: {given}"
    arrays = read_npz(Path(given), "dataset.split_file")
    unknown = set(arrays) - {"labeled", "unlabeled", "val"}
    if "labeled" not in arrays or unknown:
        raise ConfigError(f"{where}: expected arrays labeled, unlabeled, val; got {', '.join(sorted(arrays))}")
    parts: dict[str, Index] = {}
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ConfigError(f"{where}: {name} must be integers (N,), got {array.dtype} {array.shape}")
        index = np.unique(array.astype(np.int64))
        if len(index) != len(array):
            raise ConfigError(f"{where}: {name} names {len(array) - len(index)} positions twice")
        if len(index) and (index[0] < 0 or index[-1] >= num_train):
            raise ConfigError(f"{where}: {name} reaches from {index[0]} to {index[-1]}, allowed 0 to {num_train - 1}")
        parts[name] = index
    val = parts.get("val", np.empty(0, np.int64))
    unlabeled = parts.get("unlabeled", np.setdiff1d(np.arange(num_train), val))
    for name, index in (("labeled", parts["labeled"]), ("unlabeled", unlabeled)):
        shared = np.intersect1d(index, val)
        if len(shared):
            raise ConfigError(f"{where}: {len(shared)} positions stand in both {name} and val, e.g. {shared[0]}")
    for name, index in (("labeled", parts["labeled"]), ("unlabeled", unlabeled)):
        if not len(index):
            raise ConfigError(f"{where}: {name} is empty")
    if dataset.num_labels is not None and dataset.num_labels != len(parts["labeled"]):
        raise ConfigError(
            f"dataset.num_labels: {dataset.num_labels}, but {given} names {len(parts['labeled'])} labeled images"
        )
    return Split(parts["labeled"], unlabeled, val, num_test)
