"""Deep embedding clustering of frozen features (Xie et al. 2016, arXiv 1511.06335), and which class a cluster is.

The encoder and its classifier stay as they are: what is learned are the cluster centers and a linear projection of the
features. Everything runs on one thread of the CPU, wherever the features are, and is bitwise the same for the same seed
on the same machine. (The steps are too small to gain by threads, and lose a lot where cores are busy.)
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from kdrun.core.errors import KdrunError
from kdrun.core.progress import Meter
from kdrun.core.schema import Schema
from kdrun.core.seeding import generator, subseed

CHUNK = 2048  # rows that are held in float64 at a time
START_IMAGES, START_IMAGES_PER_CLUSTER = 10_000, 100  # on which the starts of k-means are compared


class Unclusterable(KdrunError):
    """These features have no clusters: too few, or all the same."""


class ClusteringConfig(Schema):
    """How features are clustered."""

    num_clusters: int | None = Field(None, gt=0)
    """null: the number of classes."""
    init: Literal["kmeans", "class_means"] = "kmeans"
    """Where the centers start: k-means, or the mean features of each label."""
    n_init: int = Field(20, gt=0)
    """Starts of k-means, of which the best counts; compared on 10,000 images, or 100 per cluster if that is more."""
    normalize: bool = True
    """Features on the unit sphere first."""
    pca: int | None = Field(64, gt=0)
    """Leading principal components that are kept; null: the features as they are (far slower)."""
    alpha: float = Field(1.0, gt=0)
    """Degrees of freedom of Student's t. 1 is the paper's, for 10 dimensions and at most 10 clusters; on 64 dimensions
    and 100 clusters that kernel is nearly flat and clusters get lost in long training, 10 keeps them."""
    update_steps: int = Field(160, gt=0)
    """Steps between two updates of the target distribution (160: the authors' for MNIST)."""
    max_updates: int = Field(20, ge=0)
    """Updates at most, ours: where clusters overlap, the stop rule may never fire. 0: the start."""
    tolerance: float = Field(0.001, ge=0, le=1)
    """Stop where fewer assignments than this share changed between two updates."""
    batch_size: int = Field(256, gt=0)
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    assign: Literal["hungarian", "majority"] = "hungarian"
    """The class of a cluster: one to one with the most agreement, or the label that most of its images have."""


@dataclass(frozen=True)
class Update:
    """What the steps between two updates of the target P did."""

    kl_before: float
    """KL(P || Q) with the new P, nats per image."""
    kl_after: float
    """KL(P || Q) with the same P, after the steps."""
    changed: float
    """Share of images that went to another cluster."""
    spread: float
    """Variance of the projected features over that at the start: 0 would be a collapse to one point."""


@dataclass(frozen=True)
class Clusters:
    """The result of `dec`; N images, K clusters, d components. All tensors on the CPU."""

    assignment: Tensor
    """(N,) int32, the likeliest cluster."""
    soft: Tensor
    """(N, K) float32, rows sum to 1."""
    start: Tensor
    """(N,) int32, the assignment before the first step."""
    centers: Tensor
    """(K, d), in the projected space."""
    start_centers: Tensor
    """(K, d)."""
    projection: Tensor
    """(d, d), from components to the projected space; the identity at the start."""
    history: tuple[Update, ...]
    steps: int
    converged: bool
    """Whether the stop rule ended it, not `max_updates`."""


def student_t(z: Tensor, centers: Tensor, alpha: float = 1.0) -> Tensor:
    """q_ij ~ (1 + |z_i - mu_j|^2 / alpha)^(-(alpha + 1) / 2), normalized over j (arXiv 1511.06335, eq. 1).

    Args:
        z: (N, d).
        centers: (K, d).
        alpha: degrees of freedom; the paper takes 1.

    Returns:
        (N, K), rows sum to 1.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    # |z|^2 + |mu|^2 - 2 z mu needs no (N, K, d), but cancels far from the origin: measure from between the centers.
    origin = centers.detach().mean(0)
    z, centers = z - origin, centers - origin
    squared = z.square().sum(1, keepdim=True) + centers.square().sum(1) - 2 * z @ centers.T
    return (-(alpha + 1) / 2 * (squared.clamp(min=0) / alpha).log1p()).softmax(1)


def sharpen(q: Tensor) -> Tensor:
    """p_ij ~ q_ij^2 / f_j, f_j = sum_i q_ij, normalized over j (arXiv 1511.06335, eq. 3). (N, K) -> (N, K).

    q must be that of the whole set: f_j holds clusters to like sizes, and over a batch it would mean something else.
    """
    weight = q.square() / q.sum(0).clamp(min=torch.finfo(q.dtype).tiny)
    return weight / weight.sum(1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(P || Q), the mean over images; (N, K) twice -> scalar.

    deviates: the paper (eq. 2) sums over images, we average, because a learning rate then fits any batch size.
    """
    return F.kl_div(q.clamp(min=torch.finfo(q.dtype).tiny).log(), p, reduction="batchmean")


def kmeans(features: Tensor, num_clusters: int, seed: int, config: ClusteringConfig) -> Tensor:
    """The k-means clusters from which `dec` starts. Arguments and errors as there; returns (N,) int32."""
    with _alone():
        x = _prepare(features, num_clusters, config)
        return _hard(student_t(x, _kmeans_centers(x, num_clusters, seed, config.n_init)))


def dec(
    features: Tensor, num_clusters: int, seed: int, config: ClusteringConfig, labels: Tensor | None = None
) -> Clusters:
    """Cluster features by self-training: minimize KL(P || Q) over centers and projection, P sharpened from Q.

    Args:
        features: (N, D) of any float type and device.
        num_clusters: K.
        seed: of k-means and of the order of images.
        config: `num_clusters` and `assign` are the caller's business.
        labels: (N,) from 0 to K - 1, -1 where there is none; only for init=class_means.

    Raises:
        Unclusterable: fewer images than clusters, or features that are all the same.
        KdrunError: features that are not finite, labels missing or out of range, a learning rate that is too large.
    """
    with _alone():
        x = _prepare(features, num_clusters, config)
        if config.init == "kmeans":
            start = _kmeans_centers(x, num_clusters, seed, config.n_init)
        else:
            start = _class_means(x, num_clusters, labels)
        return _train(x, start, seed, config)


def match_classes(
    assignment: Tensor, predicted: Tensor, num_clusters: int, num_classes: int, how: Literal["hungarian", "majority"]
) -> Tensor:
    """The class of each cluster, from the labels that its images were given.

    Args:
        assignment: (N,) cluster of each image.
        predicted: (N,) label of each image.
        num_clusters: K, may differ from the number of classes.
        num_classes: C.
        how: hungarian: one to one, most images agree; majority: the commonest label (of equals the lowest), so that
            clusters may share a class.

    Returns:
        (K,) int64; -1 for a cluster that got no class, or one that none of its images has.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = assignment.long() * num_classes + predicted.long()
    table = torch.bincount(pairs.cpu(), minlength=num_clusters * num_classes).view(num_clusters, num_classes)
    if how == "majority":
        classes = table.max(1).indices
    else:
        classes = torch.full((num_clusters,), -1)
        rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
        classes[rows] = torch.from_numpy(columns)
    shared = table.gather(1, classes.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(shared > 0, classes, -1)


def _prepare(features: Tensor, num_clusters: int, config: ClusteringConfig) -> Tensor:
    """(N, D) -> (N, d) float32: normalized, centered, on the leading principal components, mean square 1.

    The scale matters: the kernel of `student_t` has width 1, and features much closer together than that look all alike
    to it. The paper scales its data to |x|^2 / d = 1 too.
    """
    if features.ndim != 2 or not features.shape[1]:
        raise KdrunError(f"clustering needs features (N, D), got {tuple(features.shape)}")
    if len(features) < num_clusters:
        raise Unclusterable(f"clustering: {len(features)} images are too few for {num_clusters} clusters")
    count = len(features)
    mean, power = torch.zeros(features.shape[1], dtype=torch.float64), 0.0
    for rows in _rows(features, config.normalize):
        if not rows.isfinite().all():
            raise KdrunError("clustering: features hold NaN or infinite values")
        mean += rows.sum(0) / count
        power += rows.square().sum().item() / count
    variance = power - mean.square().sum().item()
    if num_clusters > 1 and variance <= 1e-12 * power:  # what rounding leaves of equal rows
        raise Unclusterable(f"clustering: the features of all {count} images are the same")

    basis = None
    if config.pca is not None:
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for rows in _rows(features, config.normalize):
            rows = rows - mean
            covariance.addmm_(rows.T, rows, alpha=1 / count)
        basis, variance = _leading(covariance, config.pca)
    out = torch.empty(count, len(mean) if basis is None else basis.shape[1])
    scale = (out.shape[1] / variance) ** 0.5 if variance > 0 else 1.0
    for rows, to in zip(_rows(features, config.normalize), out.split(CHUNK), strict=True):
        rows = (rows - mean) * scale
        to.copy_(rows if basis is None else rows @ basis)
    return out


def _rows(features: Tensor, normalize: bool) -> Iterator[Tensor]:
    """Some rows at a time in float64: a whole copy of the features is never made."""
    for rows in features.detach().split(CHUNK):
        rows = rows.cpu().double()  # in this order: mps has no float64
        yield F.normalize(rows, dim=1) if normalize else rows


def _leading(covariance: Tensor, most: int) -> tuple[Tensor, float]:
    """(D, D) -> the leading eigenvectors (D, d), without those of rounding noise, and the sum of their eigenvalues."""
    values, vectors = (found.flip(-1) for found in torch.linalg.eigh(covariance))
    kept = max(1, min(most, int((values > 1e-10 * values[0]).sum())))
    vectors = vectors[:, :kept]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    # An eigenvector has no sign of its own.
    return vectors * torch.where(largest < 0, -1.0, 1.0).double(), values[:kept].sum().item()


def _kmeans_centers(x: Tensor, num_clusters: int, seed: int, n_init: int) -> Tensor:
    """(K, d). The best of `n_init` starts is found on some of the images, then all of them have their say.

    On 50,000 images that is 3 to 9 times faster than `n_init` starts on all, for at most 0.3 % more inertia.
    """
    from sklearn.cluster import KMeans

    options = {"n_clusters": num_clusters, "random_state": subseed(seed, "kmeans") % 2**32}
    most = max(START_IMAGES, START_IMAGES_PER_CLUSTER * num_clusters)
    some = x if len(x) <= most else x[torch.randperm(len(x), generator=generator(seed, "kmeans"))[:most]]
    found = KMeans(n_init=n_init, **options).fit(some.numpy())
    if len(some) < len(x):
        found = KMeans(n_init=1, init=found.cluster_centers_, **options).fit(x.numpy())
    return torch.from_numpy(found.cluster_centers_)


def _class_means(x: Tensor, num_clusters: int, labels: Tensor | None) -> Tensor:
    """(K, d); a class without labels starts at the image that is farthest from all centers so far."""
    if labels is None:
        raise KdrunError("clustering: init=class_means needs labels")
    labels = labels.cpu().long()
    if labels.shape != (len(x),) or (labels < -1).any() or (labels >= num_clusters).any():
        raise KdrunError(f"clustering: labels must be ({len(x)},) from 0 to {num_clusters - 1}, or -1 for none")
    sizes = labels[labels >= 0].bincount(minlength=num_clusters)
    if not sizes.any():
        raise KdrunError("clustering: init=class_means needs labels, and all of them are -1")
    centers = torch.zeros(num_clusters, x.shape[1])
    centers.index_add_(0, labels[labels >= 0], x[labels >= 0])
    centers /= sizes.clamp(min=1)[:, None]
    known = (sizes > 0).nonzero().flatten().tolist()
    for empty in (sizes == 0).nonzero().flatten().tolist():
        nearest = torch.cdist(x, centers[known]).min(1).values
        centers[empty] = x[nearest.argmax()]
        known.append(empty)
    return centers


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One thread, gradients on. With more, k-means adds their sums in the order in which they finish."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def _train(x: Tensor, start: Tensor, seed: int, config: ClusteringConfig) -> Clusters:
    """`dec` from (N, d) components and (K, d) centers."""
    # deviates: the paper trains its whole encoder, we a matrix, because the classifier on top of it has to stay valid.
    projection = torch.eye(x.shape[1], requires_grad=True)
    centers = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([projection, centers], lr=config.lr, momentum=config.momentum)
    batches = _batches(len(x), config.batch_size, generator(seed, "dec"))

    history: list[Update] = []
    soft, spread = _look(x, projection, centers, config.alpha)
    first = assignment = _hard(soft)
    converged = False
    with Meter("clustering, unless it converges before", config.max_updates * config.update_steps, "steps") as meter:
        while not converged and len(history) < config.max_updates:
            target = sharpen(soft)
            before = kl(target, soft).item()
            for _ in range(config.update_steps):
                batch = next(batches)
                optimizer.zero_grad()
                kl(target[batch], student_t(x[batch] @ projection, centers, config.alpha)).backward()
                optimizer.step()
                meter.update()
            soft, variance = _look(x, projection, centers, config.alpha)
            after = kl(target, soft).item()
            if not math.isfinite(after):
                raise KdrunError(
                    f"clustering: diverged after {len(history) + 1} updates; give a smaller lr than {config.lr}"
                )
            last, assignment = assignment, _hard(soft)
            changed = (assignment != last).double().mean().item()
            history.append(Update(before, after, changed, variance / spread if spread else 1.0))
            converged = changed < config.tolerance
    return Clusters(
        assignment, soft, first, centers.detach(), start, projection.detach(), tuple(history),
        len(history) * config.update_steps, converged,
    )  # fmt: skip


def _batches(count: int, size: int, source: Generator) -> Iterator[Tensor]:
    """Indices, without end; each pass over the images in a new order."""
    while True:
        yield from torch.randperm(count, generator=source).split(size)


@torch.no_grad()
def _look(x: Tensor, projection: Tensor, centers: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Q of all images, and the variance of z; x is centered, and so is z."""
    soft, power = [], 0.0
    for rows in x.split(CHUNK):
        z = rows @ projection
        soft.append(student_t(z, centers, alpha))
        power += z.square().sum().item()
    return torch.cat(soft), power / len(x)


def _hard(soft: Tensor) -> Tensor:
    return soft.argmax(1).int()
