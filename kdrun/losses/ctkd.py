"""CTKD: distillation at a temperature that is learned against the student (Li et al. 2022, arXiv 2211.16231)."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrun.core.registry import register
from kdrun.losses.labels import full
from kdrun.losses.logits import LogitConfig, LogitTerm, kl
from kdrun.losses.term import Pair, TermSpec, risen


def ctkd(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) with a gradient to T, too, through all its places.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: (), above 0.

    Returns:
        (B,).
    """
    student, teacher = full(student_logits), full(teacher_logits.detach())
    return temperature.square() * kl(teacher / temperature, student / temperature)


def reversal(progress: float | Tensor, share: float) -> float | Tensor:
    """-(1 - cos(pi min(progress / share, 1))) / 2: from 0 to -1 in this share of the run; -1 where the share is 0."""
    return -risen(progress, share, "cosine")


@register("loss", "ctkd")
class CTKD(LogitTerm):
    """A temperature that is learned against the student, one for all images: what is hard for it is sought."""

    equation = (
        "T^2 KL(softmax(z_t / T) || softmax(z_s / T)), T = lowest + span sigmoid(theta), theta learned with its "
        "gradient times -(1 - cos(pi min(progress / warmup, 1))) / 2"
    )
    source = "Li et al. 2022, arXiv 2211.16231"
    # deviates: the authors move the factor on the gradient once an epoch, we at each step, as for dkd.

    class Config(LogitConfig):
        lowest: float = Field(1.0, gt=0)
        """The temperature stays above it."""
        span: float = Field(20.0, gt=0)
        """The temperature stays below lowest + span."""
        warmup: float = Field(10 / 240, ge=0, lt=1)
        """Share of the run in which the factor on the gradient goes from 0 to -1: the paper's 10 epochs of 240."""

    def __init__(self, config: Config, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, pair: Pair) -> Tensor:
        theta, kept = self.theta, self.theta.detach()
        turned = kept + reversal(pair.progress, self.config.warmup) * (theta - kept)  # theta, with another gradient
        return ctkd(*self.logits(pair), self._temperature(turned))

    def metrics(self, pair: Pair) -> dict[str, Tensor]:
        return {"temperature": self._temperature(self.theta)}

    def _temperature(self, theta: Tensor) -> Tensor:
        config: Any = self.config
        return torch.as_tensor(config.lowest + config.span * theta.sigmoid())
