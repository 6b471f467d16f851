"""CA-MKD: several teachers, of which one that is near an image's label counts more (Zhang et al. 2022)."""

from typing import Literal

import torch
from torch import Tensor

from kdrun.core.registry import register
from kdrun.losses.labels import cross_entropy, labels_of
from kdrun.losses.members import MembersTerm
from kdrun.losses.term import Pair


def confidence_shares(members: Tensor, target: Tensor) -> Tensor:
    """(1 - softmax_k(H(y, p_k))) / (K - 1): they sum to 1.

    Args:
        members: (B, K, C).
        target: (B,) int64, or (B, C) mixed.

    Returns:
        (B, K).
    """
    count = members.shape[1]
    distances = torch.stack([cross_entropy(one, target) for one in members.unbind(1)], 1)
    return (1 - distances.softmax(1)) / (count - 1)


@register("loss", "camkd")
class CAMKD(MembersTerm):
    """Distillation against each teacher, weighed by how right it is: `confidence_shares`."""

    equation = (
        "sum_k w_k KD_k, w_k = (1 - softmax_k(H(y, p_k))) / (K - 1), KD_k at temperature; form: code divides by K"
    )
    source = "Zhang et al. 2022, arXiv 2201.00007"
    # deviates: the paper's second term, between maps of the student and of each teacher, is left out: an ensemble gives
    # the logits of its members alone.

    class Config(MembersTerm.Config):
        form: Literal["paper", "code"] = "paper"
        """code: the sum is divided by the number of teachers once more, as in the authors' code, of which their tables
        are."""

    def shares(self, members: Tensor, pair: Pair) -> Tensor:
        shares = confidence_shares(members, labels_of(pair, self))
        return shares / members.shape[1] if self.config.form == "code" else shares
