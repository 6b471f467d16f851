"""EBKD: several teachers, of which one that is sure of an image counts more (Kwon et al. 2020, ICASSP)."""

from torch import Tensor

from kdrun.core.registry import register
from kdrun.losses.features import TINY
from kdrun.losses.logits import renyi_entropy
from kdrun.losses.members import MembersTerm
from kdrun.losses.term import Pair


def entropy_shares(members: Tensor) -> Tensor:
    """(1 - H_k / sum_j H_j) / K: they sum to (K - 1) / K. (B, K, C) -> (B, K)."""
    batch, count = members.shape[:2]
    entropies = renyi_entropy(members.flatten(0, 1), 1.0).view(batch, count)
    return (1 - entropies / entropies.sum(1, keepdim=True).clamp(min=TINY)) / count


@register("loss", "ebkd")
class EBKD(MembersTerm):
    """Distillation against each teacher, weighed by how sure it is: `entropy_shares`."""

    equation = "1/K sum_k (1 - H_k / sum_j H_j) KD_k, H_k the entropy of p_k, KD_k at temperature, K teachers"
    source = "Kwon et al. 2020, ICASSP; form: the code of Zhang et al. 2022, arXiv 2201.00007"

    def shares(self, members: Tensor, pair: Pair) -> Tensor:
        return entropy_shares(members)
