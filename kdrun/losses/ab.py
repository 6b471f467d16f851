"""Activation boundaries: which neurons are above 0, before ReLU (Heo et al. 2019, arXiv 1811.03233)."""

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from kdrun.core.registry import register
from kdrun.losses.before_relu import BeforeReluTerm
from kdrun.losses.features import same_size
from kdrun.losses.fitnet import between
from kdrun.losses.term import TermSpec


def ab(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Sum over neurons of (s + m)^2 where s > -m and t <= 0, and of (s - m)^2 where s <= m and t > 0.

    Args:
        student: (B, C, H, W), before ReLU.
        teacher: (B, C, H, W), before ReLU; its sign alone matters.
        margin: m, how far from 0 the student's neurons are wanted.

    Returns:
        (B,).
    """
    student, teacher = same_size(student, teacher)
    active = teacher > 0
    below, above = (student + margin).clamp(min=0), (student - margin).clamp(max=0)
    return above.where(active, below).square().flatten(1).sum(1)


@register("loss", "ab")
class AB(BeforeReluTerm):
    """Neurons are active where the teacher's are: `ab`, summed over stages.

    Of another shape than the teacher's the student's map goes through a convolution and batch normalization.
    """

    equation = (
        "sum over pairs k = 0 to n - 1 of features and teacher_features of 2^(k - n + 1) sum of (s + margin)^2 where "
        "s > -margin and t <= 0, (s - margin)^2 where s <= margin and t > 0, s = r_k(f_s) and t before ReLU"
    )
    source = "Heo et al. 2019, arXiv 1811.03233; connectors: Tian et al. 2020, arXiv 1910.10699"
    # deviates: the authors' teacher is in training mode, ours is frozen in evaluation mode, because that is the
    # function that was trained, and a frozen teacher does not drift.

    class Config(BeforeReluTerm.Config):
        margin: float = Field(1.0, gt=0)
        """How far from 0 neurons of the student are wanted, on the side on which the teacher's are."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.connectors = nn.ModuleList()
        for k, (inputs, outputs) in enumerate(self.widths):
            sides = spec.student_reductions.get(self.pairs[k][0]), spec.teacher_reductions.get(self.pairs[k][1])
            same = inputs == outputs and sides[0] == sides[1]
            convolution = None if same else between(*sides, inputs, outputs, "a connector", "name other features")
            self.connectors.append(
                nn.Identity() if convolution is None else nn.Sequential(convolution, nn.BatchNorm2d(outputs))
            )

    def of_stage(self, k: int, student: Tensor, teacher: Tensor) -> Tensor:
        return ab(self.connectors[k](student), teacher, self.config.margin)
