"""Losses against labels."""

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config import TermConfig
from kdrun.errors import KdrunError
from kdrun.losses.term import Pair, Term
from kdrun.registry import register


def cross_entropy(student_logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """H(target, softmax(student_logits)) per sample.

    Args:
        student_logits: (B, C).
        target: (B,) int64 class indices, or (B, C) probabilities.

    Returns:
        (B,) float32 (float64 for float64 logits).
    """
    logits = student_logits if student_logits.dtype.itemsize >= 4 else student_logits.float()
    return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)


@register("loss", "ce")
class CrossEntropy(Term):
    """Cross entropy with the labels."""

    class Config(TermConfig):
        label_smoothing: float = Field(0.0, ge=0, lt=1)

    def forward(self, pair: Pair) -> Tensor:
        if pair.target is None:
            raise KdrunError("loss.ce needs labels, and this stream has none")
        return cross_entropy(pair.student.logits, pair.target, self.config.label_smoothing)
