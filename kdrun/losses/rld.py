"""RLD: what the teacher knows, corrected by the label (Sun et al. 2024, arXiv 2408.07703).

Per sample, in float32 at least, finite for logits up to 1e4, gradients to the student only; y is the class of the
label.
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from kdrun.core.registry import register
from kdrun.losses.decoupled import DKDConfig, apart
from kdrun.losses.labels import full, labels_of, over_classes
from kdrun.losses.logits import LogitTerm, above_zero, kl
from kdrun.losses.term import Pair, risen

HIDDEN = -1e9  # a logit in float32 whose probability is 0 beside any other, and which leaves no infinity behind


def sample_confidence(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL((m_t, 1 - m_t) || (p_s,y, 1 - p_s,y)), m_t = max_i p_t,i, at temperature T.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) int64.
        temperature: T > 0.

    Returns:
        (B,).
    """
    above_zero("temperature", temperature)
    teacher = full(teacher_logits.detach())
    s, _ = apart(full(student_logits) / temperature, target)
    t, _ = apart(teacher / temperature, teacher.argmax(1))
    return temperature**2 * kl(t, s)


def masked_correlation(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(M(z_t / T) || M(z_s / T)), M = softmax over the classes with z_t,i < z_t,y; 0 where there is none.

    Shapes as in `sample_confidence`. A class that the teacher rates as high as the label's is left out with it.
    """
    above_zero("temperature", temperature)
    teacher = full(teacher_logits.detach())
    hidden = teacher >= teacher.gather(1, target[:, None])
    s, t = ((full(z) / temperature).masked_fill(hidden, HIDDEN) for z in (student_logits, teacher))
    return temperature**2 * kl(t, s)


class RLDConfig(DKDConfig):
    alpha: float = Field(1.0, ge=0)
    """Factor on SCD, how sure the teacher is against how sure the student is of the label."""
    beta: float = Field(8.0, ge=0)
    """Factor on MCD, the classes that the teacher rates below the label's, among themselves."""
    temperature: float = Field(4.0, gt=0)
    """Of MCD."""
    alpha_temperature: float | None = Field(1.0, gt=0)
    """Of SCD; null: `temperature`, the authors' `same-t`."""


@register("loss", "rld")
class RLD(LogitTerm):
    """The teacher tells its confidence, and classes that it ranks above the label are masked."""

    equation = (
        "min(progress / warmup, 1) (alpha SCD + beta MCD), SCD = alpha_temperature^2 KL((max p_t, 1 - max p_t) || "
        "(p_s,y, 1 - p_s,y)) at alpha_temperature, MCD = temperature^2 KL(M(z_t) || M(z_s)) at temperature, M = "
        "softmax over the classes with z_t,i < z_t,y"
    )
    source = "Sun et al. 2024, arXiv 2408.07703"
    # deviates: the authors raise the weight once an epoch, by 1/20 from the first; we at each step, as for dkd.
    # deviates: the authors take the logarithm of a sum of probabilities, which may be 0; ours is the same, and finite.

    Config = RLDConfig

    def forward(self, pair: Pair) -> Tensor:
        c: RLDConfig = self.config
        student, teacher = self.logits(pair)

        def of_class(y: Tensor) -> Tensor:
            scd = sample_confidence(student, teacher, y, c.alpha_temperature or c.temperature)
            return c.alpha * scd + c.beta * masked_correlation(student, teacher, y, c.temperature)

        return risen(pair.progress, c.warmup) * over_classes(labels_of(pair, self), of_class)

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        one, other = (t**2 for t in (config.alpha_temperature or config.temperature, config.temperature))
        return [f"temperature^2 is inside the term, not in its weight: {one:g} in SCD, {other:g} in MCD"]
