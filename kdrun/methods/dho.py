"""Two heads on the same features, one for labels and one for a teacher (DHO: Kang et al. 2025, arXiv 2505.07675).

h_CE(z) = W_CE z + b, h_KD(z) = W_KD z + b; the losses are those of `kdrun.methods.sho`, terms against the labels on
h_CE, the student's own classifier, and terms against the teacher on h_KD; in the paper 0.5 CE + 0.5 KL, temperature 2.
Inference: p = alpha softmax(h_CE) + (1 - alpha) softmax(h_KD / beta), alpha and beta of the highest accuracy on the
validation images; of several, those of the lowest NLL (ours: that is not in the paper).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.registry import register
from kdrun.data.views.view import View
from kdrun.methods.choice import Choice, Inputs
from kdrun.methods.names import start_from_names
from kdrun.methods.sho import SHOConfig
from kdrun.methods.step import Context, Setup
from kdrun.methods.two_heads import TwoHeads
from kdrun.models.heads import make_head
from kdrun.models.output import Output

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class DHOConfig(SHOConfig):
    both: ClassVar[bool] = True

    kd_head: Literal["linear", "mlp", "cosine"] = "linear"
    """cosine: cos(z, w_c) / zeta, the paper's aligned head; mlp: one hidden layer as wide as the features."""
    zeta: Positive = 0.01
    """Temperature of the cosine head."""
    combination: Literal["search", "fixed", "entropy"] = "search"
    """search: alpha and beta are chosen on the validation images, at each evaluation; fixed: they are those below;
    entropy: alpha = e^-H(p_CE) / (e^-H(p_CE) + e^-H(p_KD)), image by image, and beta is that below."""
    ce_share: Share = 0.4
    """alpha."""
    kd_head_temperature: Positive = 0.5
    """beta."""
    ce_shares: list[Share] = Field(default_factory=lambda: [k / 20 for k in range(21)], min_length=1)
    """What alpha is searched in."""
    kd_head_temperatures: list[Positive] = Field(
        default_factory=lambda: [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0], min_length=1
    )
    """What beta is searched in."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.kd_head == "mlp" and self.language_aware_init == "both":
            raise ValueError("language_aware_init: an mlp head has no weight for each class; set it to ce or none")
        return self


@register("method", "dho")
class DHO(TwoHeads[DHOConfig]):
    """Two heads on the same features, one for labels and one for a teacher."""

    Config = DHOConfig
    equation = (
        "as sho, against labels with h_CE and against the teacher with h_KD; p = ce_share softmax(h_CE) + (1 - "
        "ce_share) softmax(h_KD / kd_head_temperature)"
    )
    source = "Kang et al. 2025, arXiv 2505.07675"
    alone = MappingProxyType({"ce_head": "student"})

    ce_share: Tensor
    """() alpha in force."""
    kd_head_temperature: Tensor
    """() beta in force."""

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        spec = self.spec
        if spec.language_aware_init == "both":
            start_from_names([self.kd_head], config, setup)
        chosen = spec.combination == "search"  # else a finished run has those of its configuration, not of its file
        self.register_buffer("ce_share", torch.tensor(spec.ce_share), persistent=chosen)
        self.register_buffer("kd_head_temperature", torch.tensor(spec.kd_head_temperature), persistent=chosen)

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        searches = cls.spec_of(config).combination == "search"
        return replace(super().needs(config), validation="method.combination: search needs" if searches else None)

    @property
    def headline(self) -> str:
        return "combined"

    def second_head(self, dim: int) -> tuple[str, Callable[[], nn.Module]]:
        spec, classes = self.spec, self.setup.num_classes
        return spec.kd_head, lambda: make_head(spec.kd_head, dim, classes, spec.zeta)

    def heads(self, out: Output, ctx: Context | None = None) -> tuple[Tensor, Tensor]:
        return out.logits, self.kd_head(out.features[self.shared]).float()

    def predict(self, view: View) -> dict[str, Tensor]:
        """Each head, and both together as `combined`."""
        return self._combined(self._heads(view))

    def choice(self) -> Choice | None:
        if self.spec.combination != "search":
            return None
        values = {"ce_share": self.ce_share, "kd_head_temperature": self.kd_head_temperature}
        return Choice(
            net="combined", values=values, inputs=self._heads, candidates=self._candidates, apply=self._combined
        )

    def _heads(self, view: View) -> dict[str, Tensor]:
        both = self.heads(self.students["student"](view, (self.shared,)))
        return dict(zip(("ce_head", "kd_head"), both, strict=True))

    def _combined(self, heads: Inputs) -> dict[str, Tensor]:
        """Log-probabilities (M, C) with the alpha and beta in force."""
        share = None if self.spec.combination == "entropy" else self.ce_share
        return {**heads, "combined": combine(heads["ce_head"], heads["kd_head"], share, self.kd_head_temperature)}

    def _candidates(self, heads: Inputs) -> Iterator[tuple[tuple[float, ...], Tensor]]:
        ce, kd = heads["ce_head"], heads["kd_head"]
        for share, temperature in product(self.spec.ce_shares, self.spec.kd_head_temperatures):
            yield (share, temperature), combine(ce, kd, ce.new_tensor(share), ce.new_tensor(temperature))


def combine(ce_logits: Tensor, kd_logits: Tensor, share: Tensor | None, temperature: Tensor) -> Tensor:
    """log(alpha softmax(h_CE) + (1 - alpha) softmax(h_KD / beta)).

    Args:
        ce_logits: (B, C).
        kd_logits: (B, C).
        share: () alpha; None: e^-H(p_CE) / (e^-H(p_CE) + e^-H(p_KD)) of each image.
        temperature: () beta.

    Returns:
        (B, C) log-probabilities.
    """
    ce, kd = ce_logits.log_softmax(1), (kd_logits / temperature).log_softmax(1)
    if share is None:
        odds = (ce.exp() * ce - kd.exp() * kd).sum(1, keepdim=True)  # H(p_KD) - H(p_CE)
        return torch.logaddexp(F.logsigmoid(odds) + ce, F.logsigmoid(-odds) + kd)
    return torch.logaddexp(share.log() + ce, torch.log1p(-share) + kd)
