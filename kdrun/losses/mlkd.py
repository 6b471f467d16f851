"""Multi-level logit distillation: single images, the batch and the classes (Jin et al. 2023, CVPR)."""

from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.core.registry import register
from kdrun.losses.labels import full
from kdrun.losses.logits import LogitConfig, LogitTerm, kd
from kdrun.losses.term import Pair, teacher_of

Temperature = Annotated[float, Field(gt=0)]


def batch_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """|P_t P_t^T - P_s P_s^T|^2 / B, P = softmax(z / T). (B, C), (B, C) -> ()."""
    s, t = _softened(student_logits, teacher_logits, temperature)
    return (t @ t.mT - s @ s.mT).square().sum() / len(s)


def class_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """|P_t^T P_t - P_s^T P_s|^2 / C, P = softmax(z / T). (B, C), (B, C) -> ()."""
    s, t = _softened(student_logits, teacher_logits, temperature)
    return (t.mT @ t - s.mT @ s).square().sum() / s.shape[1]


def _softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> list[Tensor]:
    return [(full(logits) / temperature).softmax(1) for logits in (student_logits, teacher_logits.detach())]


def lower_half(x: Tensor) -> Tensor:
    """The share of numbers that are at most the median: about a half, more where some are equal. (N,) -> ()."""
    median = x.sort().values[(len(x) - 1) // 2]
    return (x <= median).to(x.dtype).mean()


@register("loss", "mlkd")
class MLKD(LogitTerm):
    """Student and teacher agree on images, on their batch and on the classes, at several temperatures, on two views.

    As the authors' code has it, which the published figures come from and which alone was read. There the masks of
    unsure images and rare classes fall on sums, of which they leave a share (`lower_half`); at some temperatures KD of
    the strong view is that of the weak one; and the relations of the strong view are not added. With method=distill
    and method.views=[weak, strong]; ce beside it is added on both views.
    """

    equation = (
        "weak view: sum over T of temperatures of h (T^2 KL_T + bc_T) + h' cc_T, + sum over misplaced of T^2 KL_T; "
        "strong view: sum over the other T of T^2 KL_T; bc = |P_t P_t^T - P_s P_s^T|^2 / B, cc = |P_t^T P_t - P_s^T "
        "P_s|^2 / C, h and h' the shares of images and classes of at most median confidence"
    )
    source = "Jin et al. 2023, CVPR, Multi-level logit distillation (no arXiv id)"

    class Config(LogitConfig):
        # `standardize` is of KD alone, as in logit standardisation (arXiv 2403.01427)
        temperatures: list[Temperature] = Field(default_factory=lambda: [2.0, 3.0, 4.0, 5.0, 6.0], min_length=1)
        misplaced: list[Temperature] = Field(default_factory=lambda: [2.0, 6.0])
        """Those at which KD of the strong view is of the weak one's logits: the code's; []: at none."""

        @model_validator(mode="after")
        def consistent(self) -> Self:
            if len(set(self.temperatures)) < len(self.temperatures):
                raise ValueError(f"temperatures: each counts once, got {self.temperatures}")
            if not set(self.misplaced) < set(self.temperatures):
                raise ValueError(f"misplaced: must be some of temperatures and not all, got {self.misplaced}")
            return self

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, views=("weak", "strong"), over_ranks="gathered", per_sample=False)

    def forward(self, pair: Pair) -> Tensor:
        logits = pair.student.logits, teacher_of(pair, self).logits
        scaled, config = self.logits(pair), self.config
        divergence = {t: kd(*scaled, t).mean() for t in config.temperatures}
        of_strong = [t for t in config.temperatures if t not in config.misplaced]
        if pair.view != "weak":
            return torch.stack([divergence[t] for t in of_strong]).sum()
        sure = full(logits[1].detach()).softmax(1)
        images, classes = lower_half(sure.amax(1)), lower_half(sure.sum(0))
        weak = [
            images * (divergence[t] + batch_relation(*logits, t)) + classes * class_relation(*logits, t)
            for t in config.temperatures
        ]
        return torch.stack([*weak, *(divergence[t] for t in config.misplaced)]).sum()
