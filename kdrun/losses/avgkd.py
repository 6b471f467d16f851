"""AvgKD: the mean over several teachers of their distillation losses (You et al. 2017, KDD)."""

from torch import Tensor

from kdrun.core.registry import register
from kdrun.losses.members import MembersTerm
from kdrun.losses.term import Pair


@register("loss", "avgkd")
class AvgKD(MembersTerm):
    """Distillation against each teacher, all of one weight."""

    # It has the gradient of KD against mean_k softmax(z_k / T), from which it differs by a constant.
    equation = "1/K sum_k temperature^2 KL(softmax(z_k / temperature) || softmax(z_s / temperature)), K teachers"
    source = "You et al. 2017, KDD; weight: Zhang et al. 2022, arXiv 2201.00007"

    def shares(self, members: Tensor, pair: Pair) -> Tensor:
        return members.new_full(members.shape[:2], 1 / members.shape[1])
