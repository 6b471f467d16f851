"""NST: where channels are active, as a distribution over channels (Huang and Wang 2017, arXiv 1707.01219)."""

from torch import Tensor
from torch.nn import functional as F

from kdrun.core.registry import register
from kdrun.losses.features import TINY, StagesTerm, same_size


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """k(t, t) + k(s, s) - 2 k(s, t), k the mean over pairs of channels of <a, b>^2, channels of length 1.

    The squared maximum mean discrepancy of the two sets of channels, which may be of different sizes.

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H', W'); the larger of the two maps is average-pooled.

    Returns:
        (B,), 0 or more.
    """
    mine, other = (F.normalize(feature.flatten(2), dim=2, eps=TINY) for feature in same_size(student, teacher))
    return _alike(other, other) + _alike(mine, mine) - 2 * _alike(mine, other)


def _alike(one: Tensor, other: Tensor) -> Tensor:
    """(B, C, N), (B, C', N) -> (B,)."""
    return (one @ other.mT).square().mean((1, 2))


@register("loss", "nst")
class NST(StagesTerm):
    """The student's channels, taken as a set, are active where the teacher's are: `nst`, summed over stages."""

    equation = (
        "sum over pairs of features and teacher_features of k(t, t) + k(s, s) - 2 k(s, t), k the mean over pairs of "
        "channels of the square of their cosine over positions"
    )
    source = "Huang and Wang 2017, arXiv 1707.01219; weight: Tian et al. 2020, arXiv 1910.10699"

    def of_stage(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        return nst(student, teacher)
