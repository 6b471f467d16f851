"""Statistics of the teacher by class, over the train images: what `Term.before` asks for. All on the CPU."""

import math

import torch
from torch import Tensor

FEWEST = 3
"""Images of a class for a similarity: of one there is none, of two it is 1 for all classes."""
BLOCK = 1 << 24  # numbers held at a time


def class_means(features: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Mean feature of the labeled images of each class. (M, D), (M, C), (M,) -> (C, D) float32; NaN without images."""
    known = target >= 0
    sums = features.new_zeros((logits.shape[1], features.shape[1]), dtype=torch.float64)
    sums.index_add_(0, target[known], features[known].double())
    return (sums / count_of(target, logits.shape[1])[:, None]).float()


def similarity_by_label(features: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Linear CKA between classes, of the first images of each label, as many as the rarest has. -> (C, C) float32."""
    classes = logits.shape[1]
    size = int(count_of(target, classes).min())
    return linear_cka(torch.stack([features[(target == k).nonzero()[:size, 0]] for k in range(classes)]))


def similarity_by_teacher(features: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Linear CKA between classes, of the M / C images that have the highest probability of each. -> (C, C) float32.

    Ours, for few labels: so every class has images, also one that the teacher finds the most probable nowhere.
    """
    size = min(max(len(logits) // logits.shape[1], FEWEST), len(logits))
    chosen = logits.log_softmax(1).topk(size, 0).indices.sort(0).values  # in the order of the train array
    return linear_cka(features[chosen.T])


def linear_cka(sets: Tensor) -> Tensor:
    """Linear CKA between sets of n features (Kornblith et al. 2019, arXiv 1905.00414): the k-th of one set is held
    against the k-th of the other.

    Args:
        sets: (C, n, D).

    Returns:
        (C, C) float32 in [0, 1]; 0 where the features of a set are all the same.
    """
    count, size, _ = sets.shape
    hsic = torch.zeros(count, count, dtype=torch.float64)
    means = [part.double().mean(0) for part in sets]
    for rows in torch.arange(size).split(max(BLOCK // (count * size), 1)):
        grams = torch.stack([
            ((part[rows].double() - mean) @ (part.double() - mean).T).flatten()
            for part, mean in zip(sets, means, strict=True)
        ])  # fmt: skip
        hsic += grams @ grams.T
    own = hsic.diagonal().sqrt()
    return (hsic / (own[:, None] * own).clamp(min=math.ulp(0.0))).clamp(0, 1).float()


def count_of(target: Tensor, classes: int) -> Tensor:
    """Labeled images of each class. (M,) int64, -1 where there is no label -> (C,) int64."""
    return target[target >= 0].bincount(minlength=classes)
