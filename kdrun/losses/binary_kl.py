"""Binary KL divergences of each class for itself, between logits (DHKD: Yang et al. 2024, arXiv 2411.08937).

As in `kdrun.losses.logits`: per sample, in float32 at least, finite for logits up to 1e4, gradient to the student only.
"""

import math

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.core.registry import register
from kdrun.losses.labels import full
from kdrun.losses.logits import LogitConfig, LogitTerm, above_zero
from kdrun.losses.term import Pair

SMALLEST = 1e-8  # of a probability, the authors'


def binary_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float, norm: bool = True) -> Tensor:
    """T^2 sum_c KL(Bernoulli(a_c) || Bernoulli(b_c)), a and b held within 1e-8 of 0 and 1.

    norm: a = 1/2, b = sigmoid((z_s - z_t) / T), 0 where the logits are the same (BinaryKL-Norm of arXiv 2411.08937).
    Else a = sigmoid(z_t / T), b = sigmoid(z_s / T). The authors' 1 - 1e-8 is 1 in float32, whose loss is infinite; the
    bound is on the logarithms here, so it holds there too.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.

    Returns:
        (B,).
    """
    above_zero("temperature", temperature)
    student, teacher = full(student_logits) / temperature, full(teacher_logits.detach()) / temperature
    if norm:
        student, teacher = student - teacher, teacher * 0
    (a, not_a), (b, not_b) = _logs(teacher), _logs(student)
    return temperature**2 * (a.exp() * (a - b) + not_a.exp() * (not_a - not_b)).sum(1)


def _logs(z: Tensor) -> tuple[Tensor, Tensor]:
    """log sigmoid(z) and log(1 - sigmoid(z))."""
    low, high = math.log(SMALLEST), math.log1p(-SMALLEST)
    return F.logsigmoid(z).clamp(low, high), F.logsigmoid(-z).clamp(low, high)


class BinaryKLConfig(LogitConfig):
    norm: bool = True
    """Between the difference of the logits and 0, not between the logits."""
    temperature: float = Field(2.0, gt=0)


@register("loss", "binary_kl")
class BinaryKL(LogitTerm):
    """Each class is a binary problem of its own: `binary_kl`."""

    equation = (
        "temperature^2 sum_c KL(Bernoulli(a_c) || Bernoulli(b_c)); norm: a = 1/2, b = sigmoid((z_s - z_t) / "
        "temperature); else a = sigmoid(z_t / temperature), b = sigmoid(z_s / temperature)"
    )
    source = "Yang et al. 2024, arXiv 2411.08937"

    Config = BinaryKLConfig

    def forward(self, pair: Pair) -> Tensor:
        c: BinaryKLConfig = self.config
        return binary_kl(*self.logits(pair), c.temperature, c.norm)
