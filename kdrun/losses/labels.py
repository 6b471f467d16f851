"""Losses against labels."""

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.errors import KdrunError
from kdrun.core.registry import register
from kdrun.losses.term import Pair, Term


def full(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def labels_of(pair: Pair, term: Term) -> Tensor:
    """The target of a pair. Raises KdrunError where there is none."""
    if pair.target is None:
        raise KdrunError(f"loss.{term.config.name} needs labels, and this stream has none")
    return pair.target


def over_classes(target: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """A loss for one class an image, where the labels may mix those of two: lambda loss(y) + (1 - lambda) loss(y_j).

    Of cross entropy this is what mixup minimises (Zhang et al. 2018, arXiv 1710.09412); ours for other losses.

    Args:
        target: (B,) int64, or (B, C) with at most two classes above 0.
        loss: (B,) int64 -> (B,).

    Returns:
        (B,).
    """
    if target.ndim == 1:
        return loss(target)
    shares, classes = target.topk(2, 1)
    return shares[:, 0] * loss(classes[:, 0]) + shares[:, 1] * loss(classes[:, 1])


def cross_entropy(student_logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """H(target, softmax(student_logits)) per sample.

    Args:
        student_logits: (B, C).
        target: (B,) int64 class indices, or (B, C) probabilities.

    Returns:
        (B,) float32 (float64 for float64 logits).
    """
    return F.cross_entropy(full(student_logits), target, reduction="none", label_smoothing=label_smoothing)


@register("loss", "ce")
class CrossEntropy(Term):
    """Cross entropy with the labels."""

    equation = "H(y, p_s), y smoothed by label_smoothing"
    source = "the usual loss of a classifier; smoothing: Szegedy et al. 2016, arXiv 1512.00567"

    class Config(TermConfig):
        label_smoothing: float = Field(0.0, ge=0, lt=1)

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(over_ranks="mean")

    def forward(self, pair: Pair) -> Tensor:
        return cross_entropy(pair.student.logits, labels_of(pair, self), self.config.label_smoothing)
