"""FitNet: a stage of the teacher as a hint for one of the student (Romero et al. 2015, arXiv 1412.6550)."""

from typing import Any, Literal

from torch import Tensor, nn

from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import Stage, same_size
from kdrun.losses.stage import StageTerm
from kdrun.losses.term import TermSpec


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels and positions of (f_s - f_t)^2 (Romero et al. 2015, arXiv 1412.6550).

    Args:
        student: (B, C, H, W), regressed to the teacher's channels.
        teacher: (B, C, H', W').

    Returns:
        (B,).
    """
    student, teacher = same_size(student, teacher)
    return (student - teacher).square().flatten(1).mean(1)


@register("loss", "fitnet")
class FitNet(StageTerm):
    """The map of one stage is the teacher's: `fitnet`.

    The student's goes through a convolution, batch normalization and ReLU.
    """

    equation = (
        "mean (r(f_s) - f_t)^2, f_s the student's map at feature, f_t the teacher's at teacher_feature, r the "
        "learned regressor"
    )
    source = "Romero et al. 2015, arXiv 1412.6550; weight: Tian et al. 2020, arXiv 1910.10699"

    class Config(StageTerm.Config):
        regressor: Literal["pool", "conv"] = "pool"
        """Where the maps differ in size: pool: the larger one is pooled, which fits any two; conv: the literature's, a
        3x3 convolution of stride 2, or a transposed 4x4 one, where one map is twice as large as the other."""
        feature: Stage | None = None
        """The student's stage; null: the middle one. That is hint layer 2 of the literature in all its pairs."""
        teacher_feature: Stage | None = None
        """The teacher's stage; null: of the same name as `feature` where that is given, else the middle one."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        inputs, outputs = self.widths
        convolution: nn.Module = nn.Conv2d(inputs, outputs, 1, bias=False)
        if config.regressor == "conv":
            (student,), (teacher,) = self.needed.features, self.needed.of_teacher
            sides = spec.student_reductions.get(student), spec.teacher_reductions.get(teacher)
            convolution = between(*sides, inputs, outputs, "regressor: conv", "set it to pool")
        self.regressor = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    @staticmethod
    def usual(names: list[str]) -> str:
        return names[(len(names) - 1) // 2]

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        mine, other = student[0], teacher[0]
        if self.config.regressor == "pool":
            mine, other = same_size(mine, other)
        return fitnet(self.regressor(mine), other)


def between(student: int | None, teacher: int | None, inputs: int, outputs: int, who: str, remedy: str) -> nn.Module:
    """The convolution from the student's map to the size of the teacher's, as in the code of arXiv 1910.10699.

    Args:
        student: side of the image over that of the student's map; None: not known.
        teacher: likewise.
        who: asks for it, for the message where there is none.
        remedy: what else to do then.
    """
    if student is None or teacher is None or max(student, teacher) > 2 * min(student, teacher):
        known = "not known" if student is None or teacher is None else f"1/{student} and 1/{teacher} of the image"
        raise ConfigError(
            f"{who} is for maps of which one is at most twice as large, and their sides are {known}; {remedy}"
        )
    if student < teacher:
        return nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
    if student > teacher:
        return nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
    return nn.Conv2d(inputs, outputs, 1, bias=False)
