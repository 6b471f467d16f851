"""UDA (Xie et al. 2020, arXiv 1904.12848): FixMatch with sharpened labels, and labels released over the run.

An unlabeled image whose confidence reaches `threshold` has the label softmax(z / temperature), z without gradient. With
training signal annealing (TSA) a labeled image whose label has more probability than share * (1 - 1 / C) + 1 / C is
left out; the share rises from 0 to 1 as `annealing` says, and the mean is one over the images that are left.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kdrun.core.registry import register
from kdrun.methods.fixmatch import FixMatch, FixMatchConfig, LabelsConfig
from kdrun.methods.labeler import Labeler, Seen, over_kept, sharpened

Share = float | Tensor
SHARES: dict[str, Callable[[Share], Share]] = {
    "linear": lambda t: t,
    "exp": lambda t: math.e ** (5 * (t - 1)),
    "log": lambda t: 1 - math.e ** (-5 * t),
}
"""How far labels are released, by progress."""


class UDAConfig(FixMatchConfig):
    threshold: float = Field(0.8, ge=0, le=1)
    """The confidence from which on a prediction, before it is sharpened, becomes a label."""
    temperature: float = Field(0.4, gt=0)
    """T of labels."""
    annealing: Literal["none", "linear", "exp", "log"] = "none"
    """How labeled images are released over the run, t in [0, 1) of it done: none: all at once, linear: t, exp:
    e^(5 (t - 1)), log: 1 - e^(-5 t)."""


class Sharpened(Labeler):
    @torch.no_grad()
    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        weight: Tensor = super().forward(seen)[1]
        return sharpened(seen.p, self.spec.temperature), weight


class Annealed(Sharpened):
    gathers = True  # a mean over what is left is none over images

    @torch.no_grad()
    def of_labeled(self, seen: Seen) -> Tensor:
        p = seen.known.softmax(1)
        known, least = p.gather(1, seen.target[:, None])[:, 0], 1 / p.shape[1]
        highest = SHARES[self.spec.annealing](seen.progress) * (1 - least) + least
        return over_kept((known <= highest).float())


@register("method", "uda")
class UDA(FixMatch[UDAConfig]):
    """FixMatch with sharpened labels, and labels released over the run."""

    # deviates: the paper has KL(q, p(strong)), we the terms of `loss`: H(q, p(strong)), whose gradient is the same.
    Config = UDAConfig
    equation = (
        "TSA H(y, p(weak)) + unlabeled_weight 1[max softmax(z(weak)) >= threshold] H(softmax(z(weak) / temperature), "
        "p(strong))"
    )
    source = "Xie et al. 2020, arXiv 1904.12848"
    labels_by = Sharpened

    @classmethod
    def labels_with(cls, spec: UDAConfig) -> tuple[type[Labeler], LabelsConfig]:
        return (Sharpened if spec.annealing == "none" else Annealed), spec
