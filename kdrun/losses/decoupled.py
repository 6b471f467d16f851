"""Losses that take the target class apart from the others: DKD and NKD. They need the teacher and the labels.

As in `kdrun.losses.logits`: per sample, in float32 at least, finite for logits up to 1e4, gradients to the student
only. y is the class of the label, N(z) = softmax over the other classes.
"""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdrun.core.registry import register
from kdrun.losses.labels import full, labels_of, over_classes
from kdrun.losses.logits import LogitConfig, LogitTerm, above_zero, kl, squared_temperature
from kdrun.losses.term import Pair, risen


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float,
    beta: float | Tensor,
    temperature: float,
) -> Tensor:
    """T^2 (alpha KL(b_t || b_s) + beta KL(N(z_t / T) || N(z_s / T))), b = (p_y, 1 - p_y) at temperature T.

    Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679). The two parts are TCKD and NCKD; KD has
    alpha 1 and beta 1 - p_t,y.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) int64.
        alpha: factor on TCKD.
        beta: factor on NCKD, one number or (B,).
        temperature: T > 0.

    Returns:
        (B,).
    """
    above_zero("temperature", temperature)
    s, s_rest = apart(full(student_logits) / temperature, target)
    t, t_rest = apart(full(teacher_logits.detach()) / temperature, target)
    return temperature**2 * (alpha * kl(t, s) + beta * kl(t_rest, s_rest))


def nkd(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """-p_t,y log p_s,y - gamma T^2 sum_{i != y} N(z_t / T)_i log N(z_s / T)_i; p at temperature 1.

    Normalised knowledge distillation (Yang et al. 2023, arXiv 2303.13005). Shapes as in `dkd`.
    """
    above_zero("temperature", temperature)
    s, s_rest = apart(full(student_logits), target)
    t, t_rest = apart(full(teacher_logits.detach()), target)
    known = t.softmax(1)[:, 0] * s.log_softmax(1)[:, 0]
    others = ((t_rest / temperature).softmax(1) * (s_rest / temperature).log_softmax(1)).sum(1)
    return -known - gamma * temperature**2 * others


def apart(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 2), of which softmax is (p_y, 1 - p_y), and the (B, C - 1) logits of the other classes."""
    if target.ndim != 1:
        raise ValueError(f"target must be class indices (B,), got {tuple(target.shape)}")
    y = target[:, None]
    place = torch.arange(logits.shape[1] - 1, device=logits.device)
    rest = logits.gather(1, place + (place >= y))  # a boolean mask would wait for the device
    return torch.cat([logits.gather(1, y), rest.logsumexp(1, keepdim=True)], 1), rest


class DKDConfig(LogitConfig):
    alpha: float = Field(1.0, ge=0)
    """Factor on TCKD, the target class against the rest."""
    beta: float = Field(8.0, ge=0)
    """Factor on NCKD, the other classes among themselves."""
    temperature: float = Field(4.0, gt=0)
    warmup: float = Field(20 / 240, ge=0, lt=1)
    """Share of the run in which the weight rises from 0: the paper's 20 epochs of 240."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0; give one of them a value, or the term the weight 0")
        return self


@register("loss", "dkd")
class DKD(LogitTerm):
    """What the teacher says of the image's class and of the others is weighted apart: `dkd`."""

    equation = (
        "min(progress / warmup, 1) temperature^2 (alpha TCKD + beta NCKD), TCKD = KL((p_t,y, 1 - p_t,y) || (p_s,y, "
        "1 - p_s,y)), NCKD = KL(N(z_t) || N(z_s)), N over classes != y, all at temperature"
    )
    source = "Zhao et al. 2022, arXiv 2203.08679"

    Config = DKDConfig

    def forward(self, pair: Pair) -> Tensor:
        c: DKDConfig = self.config
        # deviates: the authors' code raises the weight once an epoch, by 1/20 from the first; we at each step, because
        # an epoch of 50 labels is no measure of time.
        student, teacher = self.logits(pair)
        return risen(pair.progress, c.warmup) * over_classes(
            labels_of(pair, self), lambda y: dkd(student, teacher, y, c.alpha, c.beta, c.temperature)
        )

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        return [squared_temperature(config)]


@register("loss", "nkd")
class NKD(LogitTerm):
    """The other classes count by their shares among themselves, the image's class as a soft label: `nkd`."""

    equation = (
        "-p_t,y log p_s,y - gamma temperature^2 sum_{i != y} N(z_t / temperature)_i log N(z_s / temperature)_i, "
        "N = softmax over classes != y; of mixed labels as mixed says: of both classes by their shares, or the larger's"
    )
    source = "Yang et al. 2023, arXiv 2303.13005"

    class Config(LogitConfig):
        gamma: float = Field(1.5, ge=0)
        """Factor on the other classes; 0: none but the target."""
        temperature: float = Field(1.0, gt=0)
        """Of the other classes only."""
        mixed: Literal["both", "larger"] = "both"
        """Of mixed labels: the loss of both classes by their shares, or that of the larger share's class alone, as in
        yzd-v/cls_KD."""

    def forward(self, pair: Pair) -> Tensor:
        c, (student, teacher), target = self.config, self.logits(pair), labels_of(pair, self)
        if c.mixed == "larger" and target.ndim > 1:
            target = target.argmax(1)
        return over_classes(target, lambda y: nkd(student, teacher, y, c.gamma, c.temperature))
