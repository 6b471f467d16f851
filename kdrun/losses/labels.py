"""Losses against labels."""

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config import TermConfig
from kdrun.errors import KdrunError
from kdrun.losses.term import Pair, Term
from kdrun.registry import register


def full(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def labels_of(pair: Pair, term: Term) -> Tensor:
    """The target of a pair. Raises KdrunError where there is none."""
    if pair.target is None:
        raise KdrunError(f"loss.{term.config.name} needs labels, and this stream has none")
    return pair.target


def classes_of(pair: Pair, term: Term) -> Tensor:
    """The target of a pair as class indices (B,). Raises KdrunError where it is a mixture of classes."""
    target = labels_of(pair, term)
    if target.ndim != 1:
        raise KdrunError(
            f"loss.{term.config.name} needs one class an image, and these labels are mixed; "
            "choose a term that sets no class apart, e.g. kd"
        )
    return target


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

    def forward(self, pair: Pair) -> Tensor:
        return cross_entropy(pair.student.logits, labels_of(pair, self), self.config.label_smoothing)
