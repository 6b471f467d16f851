"""DIST: correlation between the student's and the teacher's probabilities, within samples and within classes."""

from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.core.registry import register
from kdrun.losses.labels import full
from kdrun.losses.logits import LogitConfig, LogitTerm, above_zero, squared_temperature
from kdrun.losses.term import Pair


def dist(student_logits: Tensor, teacher_logits: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    """T^2 (beta (1 - mean_i r(P_s[i, :], P_t[i, :])) + gamma (1 - mean_j r(P_s[:, j], P_t[:, j]))), P = softmax(z / T).

    r is Pearson's correlation (Huang et al. 2022, arXiv 2205.10536): the first part compares the classes within a
    sample (inter), the second the samples of a batch within a class (intra). What is constant correlates with nothing.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        beta: factor on inter.
        gamma: factor on intra.
        temperature: T > 0.

    Returns:
        (), in float32 at least; a statistic of the batch.
    """
    above_zero("temperature", temperature)
    s = (full(student_logits) / temperature).softmax(1)
    t = (full(teacher_logits.detach()) / temperature).softmax(1)
    inter, intra = (1 - _pearson(s, t, dim).mean() for dim in (1, 0))
    return temperature**2 * (beta * inter + gamma * intra)


def _pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    x, y = (F.normalize(v - v.mean(dim, keepdim=True), dim=dim, eps=1e-8) for v in (x, y))
    return (x * y).sum(dim)


class DISTConfig(LogitConfig):
    beta: float = Field(1.0, ge=0)
    """Factor on inter, the classes within a sample."""
    gamma: float = Field(1.0, ge=0)
    """Factor on intra, the samples within a class."""
    temperature: float = Field(4.0, gt=0)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.beta == self.gamma == 0:
            raise ValueError("beta and gamma are both 0; give one of them a value, or the term the weight 0")
        return self


@register("loss", "dist")
class DIST(LogitTerm):
    """Probabilities need only correlate with the teacher's, between classes and between images: `dist`."""

    equation = (
        "temperature^2 (beta (1 - mean_i r(P_s[i, :], P_t[i, :])) + gamma (1 - mean_j r(P_s[:, j], P_t[:, j]))), "
        "P = softmax(z / temperature) over the batch, r = Pearson's correlation"
    )
    source = "Huang et al. 2022, arXiv 2205.10536"

    Config = DISTConfig

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, over_ranks="gathered", per_sample=False)

    def forward(self, pair: Pair) -> Tensor:
        return dist(*self.logits(pair), self.config.beta, self.config.gamma, self.config.temperature)

    @classmethod
    def remarks(cls, config: Any, ce_weight: float) -> list[str]:
        return [squared_temperature(config)]
