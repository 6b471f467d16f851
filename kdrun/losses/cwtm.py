"""CWTM: labels weighted by how sure the teacher is, and nothing else of it (Furlanello et al. 2018)."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.registry import register
from kdrun.losses.labels import cross_entropy, full, labels_of
from kdrun.losses.term import Pair, Term, teacher_of


@register("loss", "cwtm")
class CWTM(Term):
    """Cross entropy of the labels, each image weighted by the teacher's largest probability over the batch's sum."""

    equation = "sum_b w_b H(y_b, p_s,b), w_b = max_k p_t,b,k / sum over the batch of max_k p_t,k"
    source = "Furlanello et al. 2018 (born-again networks), arXiv 1805.04770"

    class Config(TermConfig):
        pass

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, over_ranks="gathered", per_sample=False)

    def forward(self, pair: Pair) -> Tensor:
        sure = F.softmax(full(teacher_of(pair, self).logits.detach()), 1).amax(1)
        return (sure * cross_entropy(pair.student.logits, labels_of(pair, self))).sum() / sure.sum()
