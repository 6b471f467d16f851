"""Losses between the student's and the teacher's logits: KD, TTM and WTTM, and what all such terms share.

Per sample, in float32 whatever comes in (float64 stays), finite for logits up to 1e4, gradients to the student only.
z are logits, p = softmax(z), t the teacher, s the student.
"""

import math
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.registry import register
from kdrun.losses.labels import full
from kdrun.losses.term import Pair, Term, teacher_of

Standardize = Literal["none", "std", "zscore"]
EPS = 1e-7  # of Sun et al.'s code


def standardize(logits: Tensor, mode: Standardize) -> Tensor:
    """Logits on one scale for all samples and networks; a temperature then divides the result.

    zscore: (z - mean z) / (std z + 1e-7) with the standard deviation of a sample, ddof 1 (Sun et al. 2024,
    arXiv 2403.01427). std: z / (std z + 1e-7) with that of a population, ddof 0: with temperature 1 the temperature
    "std" of arXiv 2606.12171 (after Choi et al. 2023). Softmax does not see the mean, so what differs is the scale:
    for C classes zscore is softer by sqrt(C / (C - 1)). none: z.

    Args:
        logits: (B, C).

    Returns:
        (B, C).
    """
    if mode == "none":
        return logits
    logits = full(logits)
    if mode == "std":
        return logits / (logits.std(1, correction=0, keepdim=True) + EPS)
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + EPS)


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.

    Returns:
        (B,).
    """
    above_zero("temperature", temperature)
    student, teacher = full(student_logits), full(teacher_logits.detach())
    return temperature**2 * kl(teacher / temperature, student / temperature)


def ttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """KL(p_t^gamma / sum p_t^gamma || p_s): temperature 1/gamma on the teacher only (arXiv 2402.11148, eq. of TTM).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        gamma: exponent of the power transform, 1/T, above 0.

    Returns:
        (B,).
    """
    above_zero("gamma", gamma)
    return kl(gamma * full(teacher_logits.detach()), full(student_logits))


def power_sum(teacher_logits: Tensor, gamma: float) -> Tensor:
    """U_gamma(p_t) = sum_j p_t,j^gamma, from 1 (certain) to C^(1 - gamma) (uniform), for gamma <= 1. (B, C) -> (B,)."""
    return _log_power_sum(teacher_logits.detach(), gamma).exp()


def wttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """U_gamma(p_t) * TTM: samples on which the teacher is unsure count more (arXiv 2402.11148, eq. of WTTM).

    Shapes as in `ttm`. The authors' code takes the plain mean over the batch, without dividing by the sum of U.
    """
    return power_sum(teacher_logits, gamma) * ttm(student_logits, teacher_logits, gamma)


def renyi_entropy(logits: Tensor, order: float) -> Tensor:
    """H_a(p) = log(sum_j p_j^a) / (1 - a) for order a; Shannon's -sum_j p_j log p_j where a is 1 to 1e-4.

    TTM at T is KD at T that rewards H_{1/T}(p_s) beside (arXiv 2402.11148).

    Args:
        logits: (B, C).
        order: a > 0.

    Returns:
        (B,), from 0 (certain) to log C (uniform).
    """
    above_zero("order", order)
    if abs(order - 1) < 1e-4:  # nearer, float32 divides rounding by nothing
        logs = full(logits).log_softmax(1)
        return -(logs.exp() * logs).sum(1)
    return _log_power_sum(logits, order) / (1 - order)


def _log_power_sum(logits: Tensor, order: float) -> Tensor:
    return (order * full(logits).log_softmax(1)).logsumexp(1)


def kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target_logits) || softmax(logits)) per row. (B, C), (B, C) -> (B,)."""
    return F.kl_div(logits.log_softmax(1), target_logits.log_softmax(1), reduction="none", log_target=True).sum(1)


def mean_of_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """z with softmax(z / T) = mean_k softmax(z_k / T). (K, B, C) -> (B, C)."""
    above_zero("temperature", temperature)
    logs = (full(logits) / temperature).log_softmax(2)
    return temperature * (logs.logsumexp(0) - math.log(len(logs)))


def above_zero(name: str, value: float) -> None:
    """Raise ValueError unless it is (NaN is not)."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def squared_temperature(config: Any) -> str:
    """The remark on a term that holds T^2."""
    return f"temperature^2 = {config.temperature**2:g} is inside the term, not in its weight"


class LogitConfig(TermConfig):
    """What all terms between logits have in common."""

    standardize: Standardize = "none"
    """What is done to both networks' logits, sample by sample, before all else: see `standardize` above."""


class LogitTerm(Term):
    """A term between the logits of the two networks."""

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, over_ranks="mean")

    def logits(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's, standardised as configured."""
        mode: Standardize = self.config.standardize
        return standardize(pair.student.logits, mode), standardize(teacher_of(pair, self).logits, mode)


class _Softening(LogitTerm):
    """A term whose temperature sets a Rényi entropy of the student's own probabilities, which is logged."""

    def order(self) -> float:
        """1/T."""
        raise NotImplementedError

    def metrics(self, pair: Pair) -> dict[str, Tensor]:
        return {"renyi_entropy": renyi_entropy(pair.student.logits, self.order()).mean()}


@register("loss", "kd")
class KD(_Softening):
    """The teacher's probabilities at a temperature are the student's target: `kd`."""

    equation = (
        "temperature^2 KL(softmax(z_t / temperature) || softmax(z_s / temperature)); scale: none leaves out the square"
    )
    source = "Hinton et al. 2015, arXiv 1503.02531"

    class Config(LogitConfig):
        temperature: float = Field(4.0, gt=0)
        scale: Literal["temperature_squared", "none"] = "temperature_squared"
        """none: the plain divergence, whose gradient shrinks with the temperature."""

    def order(self) -> float:
        return 1 / float(self.config.temperature)

    def forward(self, pair: Pair) -> Tensor:
        value = kd(*self.logits(pair), self.config.temperature)
        return value if self.config.scale == "temperature_squared" else value / self.config.temperature**2

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        t = config.temperature
        if config.scale == "none":
            return ["scale none takes the temperature^2 out of the term"]
        lines = [squared_temperature(config)]
        if ce_weight and config.standardize == "none":
            lines.append(
                f"beside ce it weighs as ttm does with gamma {1 / t:.4g} and weight lambda T / (1 - lambda) = "
                f"{config.weight * t / ce_weight:.4g}"
            )
        return lines


class _Transformed(_Softening):
    """What TTM and WTTM share."""

    class Config(LogitConfig):
        gamma: float = Field(0.1, gt=0, le=1)

    def order(self) -> float:
        return float(self.config.gamma)


@register("loss", "ttm")
class TTM(_Transformed):
    """The teacher's probabilities at a temperature are the target of the student's own: `ttm`."""

    equation = "KL(softmax(gamma z_t) || p_s), gamma = 1/T"
    source = "Zheng and Yang 2024, arXiv 2402.11148"

    def forward(self, pair: Pair) -> Tensor:
        return ttm(*self.logits(pair), self.config.gamma)

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        if not ce_weight or config.standardize != "none":
            return []
        t = 1 / config.gamma
        share = config.weight / (config.weight + ce_weight * t)
        return [
            f"beside ce it weighs as kd does with temperature {t:.4g} and weight lambda = {share:.4g} beside "
            f"{1 - share:.4g} ce: {config.weight / ce_weight:.4g} = lambda T / (1 - lambda)"
        ]


@register("loss", "wttm")
class WTTM(_Transformed):
    """As TTM, and an image counts the more the smoother the teacher is on it: `wttm`."""

    equation = "sum_j p_t,j^gamma KL(softmax(gamma z_t) || p_s), gamma = 1/T"
    source = "Zheng and Yang 2024, arXiv 2402.11148"

    def forward(self, pair: Pair) -> Tensor:
        return wttm(*self.logits(pair), self.config.gamma)

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        g = config.gamma
        return [f"a sample counts {config.weight:g} (certain teacher) to {config.weight:g} x C^{1 - g:g} (uniform one)"]
