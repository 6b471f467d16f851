"""Linearity between images: the outputs for a mixed image against the mix of the outputs for its two images."""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.errors import KdrunError
from kdrun.core.registry import register
from kdrun.losses.labels import full
from kdrun.losses.logits import above_zero, kl
from kdrun.losses.term import Pair, Term


def linearity(mixed_logits: Tensor, logits: Tensor, partner: Tensor, share: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(lambda p(x_i) + (1 - lambda) p(x_j) || p(x~)), p = softmax(z / T): L_NL of the code of arXiv 2606.12171.

    0 where the network is linear in its probabilities between the two images. Without the 1e-10 that the authors add to
    both distributions: it is computed from logarithms, and finite for all finite logits.

    Args:
        mixed_logits: (B, C), for x~.
        logits: (B, C), for the images themselves; gradients flow to both.
        partner: (B,) int64, place of x_j.
        share: (B,), lambda, from 0 to 1.
        temperature: T > 0.

    Returns:
        (B,).
    """
    above_zero("temperature", temperature)
    logs = (full(logits) / temperature).log_softmax(1)
    own, other = share.to(logs).log()[:, None], torch.log1p(-share.to(logs))[:, None]  # of a weight 0: -inf, exp 0
    return kl(torch.logaddexp(own + logs, other + logs[partner]), full(mixed_logits) / temperature)


@register("loss", "linearity")
class Linearity(Term):
    """The student is linear between the images of a mixture: `linearity`. Of CutMix, lambda is the share of the area,
    as for its labels."""

    equation = (
        "KL(lambda q(x_i) + (1 - lambda) q(x_j) || p_s(x~)), q of the network that `of` names, without gradient where "
        "detach, both at temperature; x~ = lambda x_i + (1 - lambda) x_j"
    )
    source = "ours; the measure L_NL: Medina et al. 2026, arXiv 2606.12171, which leaves such a loss open"

    class Config(TermConfig):
        temperature: float = Field(1.0, gt=0)
        of: Literal["student", "teacher"] = "student"
        """Whose outputs for the two images are mixed; teacher: vicinal targets."""
        detach: bool = True
        """student: whether no gradient flows through the outputs for the two images."""

        @model_validator(mode="after")
        def consistent(self) -> Self:
            if self.of == "teacher" and not self.detach:
                raise ValueError("detach=false is for of=student; no gradient flows to a teacher")
            return self

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(  # gathered: an image's partner may be another rank's
            teacher=config.of == "teacher", mixed=True, unmixed=(config.of,), unmixed_gradient=not config.detach,
            over_ranks="gathered",
        )  # fmt: skip

    def forward(self, pair: Pair) -> Tensor:
        unmixed = pair.unmixed
        output = None if unmixed is None else unmixed.teacher if self.config.of == "teacher" else unmixed.student
        if unmixed is None or output is None:
            raise KdrunError(
                f"loss.{self.config.name} needs what the {self.config.of} gives for unmixed images, and the method "
                "gave none"
            )
        logits = output.logits.detach() if self.config.detach else output.logits
        return linearity(pair.student.logits, logits, unmixed.partner, unmixed.share, self.config.temperature)
