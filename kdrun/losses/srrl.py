"""SRRL: the student's representation, seen by the teacher's own classifier (Yang et al. 2021, ICLR)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import FeatureTerm, stages
from kdrun.losses.labels import full
from kdrun.losses.term import TermSpec, width

Place = Annotated[str, Field(pattern=r"^(stage[1-9][0-9]*|prelogits)$")]


def feature_matching(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of (mean over positions of f_s - f_t)^2.

    Args:
        student: (B, C, H, W), brought to the teacher's channels.
        teacher: (B, C), the teacher's map averaged over its positions.

    Returns:
        (B,).
    """
    return (full(student).mean((2, 3)) - full(teacher.detach())).square().mean(1)


def softmax_regression(
    student: Tensor, teacher_logits: Tensor, teacher_classifier: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean over classes of (h_t(mean over positions of f_s) - z_t)^2, h_t the teacher's classifier.

    Args:
        student: (B, C, H, W), brought to the teacher's channels.
        teacher_logits: (B, classes).
        teacher_classifier: (B, C) -> (B, classes), frozen; the gradient flows through it.

    Returns:
        (B,).
    """
    seen = full(teacher_classifier(full(student).mean((2, 3))))
    return (seen - full(teacher_logits.detach())).square().mean(1)


@register("loss", "srrl")
class SRRL(FeatureTerm):
    """The student's features say the same to the teacher's classifier: `feature_matching`, `softmax_regression`.

    They go through a 1x1 convolution, batch normalization and ReLU.
    """

    equation = (
        "mean_c (f_c - t_c)^2 + regression_weight mean_k (h_t(f)_k - z_t,k)^2, f = mean over positions of r(f_s), f_s "
        "the student's feature, r learned, t the teacher's input of its classifier h_t"
    )
    source = "Yang et al. 2021, OpenReview ZzwDy_wiWv (ICLR)"
    # deviates: where layers follow a student's last stage (wide ResNets, mobilenetv2_half, shufflenetv2), its map comes
    # from before them. The authors' pairs have none; feature=prelogits is from behind them.

    class Config(TermConfig):
        feature: Place | None = None
        """The student's: a stage, whose map goes through r before it is averaged, as the authors have it; prelogits:
        r sees the averaged vector, as CIFAR-100 comparisons have it. null: the last stage."""
        regression_weight: float = Field(1.0, ge=0)
        """Factor on the squares of logits."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        if spec.teacher_classifier is None:
            raise ConfigError(
                f"srrl needs a teacher with one linear layer on its features, and teacher.source={spec.teacher_source} "
                "has none; choose another teacher, e.g. teacher=resnet20, or another loss"
            )
        self._classifier = spec.teacher_classifier  # a function: neither trained nor saved with the term
        feature = config.feature or stages(spec.student_dims, "student")[-1]
        self.needed = replace(self.needed, features=(feature,))
        inputs, outputs = width(spec.student_dims, feature, "student"), width(spec.teacher_dims, "prelogits", "teacher")
        convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        self.connector = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, teacher_features=("prelogits",), over_ranks="mean")

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        (mine,), (other,) = student, teacher
        mine = self.connector(mine if mine.ndim == 4 else mine[:, :, None, None])
        seen = softmax_regression(mine, self._classifier(other), self._classifier)
        return feature_matching(mine, other) + float(self.config.regression_weight) * seen
