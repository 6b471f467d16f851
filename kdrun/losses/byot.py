"""BYOT: a network's stages learn from its own end, at exits of their own (Zhang et al. 2019, arXiv 1905.08094)."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import TINY, stages
from kdrun.losses.labels import cross_entropy, full, labels_of
from kdrun.losses.term import Pair, Term, TermSpec, width


def soft_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """H(softmax(z' / T), softmax(z / T)), without T^2 and with no gradient to z'. (B, C), (B, C) -> (B,)."""
    return cross_entropy(logits / temperature, (full(target_logits.detach()) / temperature).softmax(1))


def hint(feature: Tensor, target: Tensor) -> Tensor:
    """|f - f'|^2 of each image, with no gradient to f'. (B, D), (B, D) -> (B,)."""
    return (full(feature) - full(target.detach())).square().sum(1)


def hint_of_batch(feature: Tensor, target: Tensor) -> Tensor:
    """|f - f'| of all images as one vector, which grows with the root of their number. (B, D), (B, D) -> ()."""
    return hint(feature, target).sum().clamp(min=TINY).sqrt()


class Exit(nn.Module):
    """A bottleneck, a depthwise and a pointwise convolution for each stage that is left, and a classifier of its own.

    Args:
        widths: channels of the stage, of those behind it, the last one replaced by the width of the network's end.
    """

    def __init__(self, widths: list[int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, before, 3, stride=2, padding=1, groups=before, bias=False),
                nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            ]  # fmt: skip
        self.bottleneck = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], classes)
        self.adapter = nn.Linear(widths[-1], widths[-1])

    def forward(self, stage: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes), and the pooled feature (B, D) as it is held against that of the network's end."""
        feature = self.bottleneck(stage).mean((2, 3))
        return self.classifier(feature), self.adapter(feature)


@register("loss", "byot")
class BYOT(Term):
    """The losses of exits behind all stages but the last; the student's own classifier, their teacher, has `ce`."""

    equation = (
        "sum over exits i of (1 - soft_weight) H(y, p_i) + soft_weight H(softmax(z_s / temperature), softmax(z_i / "
        "temperature)) + hint_weight |A_i f_i - f_s|^2, f the inputs of classifiers, A learned; form: code has one "
        "norm, without the square, of a batch, and none for the exit next to the last stage"
    )
    source = "Zhang et al. 2019, arXiv 1905.08094"
    # deviates: the authors' bottlenecks have two depthwise convolutions a stage, and gates before them; ours have one.
    # The first paper has no A; that of their code is here in both forms.

    class Config(TermConfig):
        temperature: float = Field(3.0, gt=0)
        soft_weight: float = Field(0.3, ge=0, le=1)
        """On the cross entropy with the network's end; that with the labels has the rest to 1."""
        hint_weight: float = Field(0.03, ge=0)
        form: Literal["paper", "code"] = "paper"
        """Of the hints between features; code: one norm of the batch, not squared, and the exit next to the last stage
        is left out."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        found, end = stages(spec.student_dims, "student"), width(spec.student_dims, "prelogits", "student")
        if len(found) < 2:
            raise ConfigError(
                f"byot needs a student of two stages or more, which exits stand behind; it has {len(found)}"
            )
        self.needed = replace(self.needed, features=(*found[:-1], "prelogits"))
        widths = [*(spec.student_dims[name] for name in found[:-1]), end]
        self.exits = nn.ModuleList(Exit(widths[k:], spec.num_classes) for k in range(len(found) - 1))
        hinted = len(self.exits) - (config.form == "code")
        self.hinted = hinted if config.hint_weight else 0
        """So many exits from the first one on have a hint."""
        for one in list(self.exits)[self.hinted :]:
            one.adapter = nn.Identity()  # it would never learn

    @classmethod
    def needs(cls, config: Any) -> Needs:
        whole = config.form == "code"
        return Needs(over_ranks="gathered" if whole else "mean", per_sample=not whole)

    def forward(self, pair: Pair) -> Tensor:
        config, out, target = self.config, pair.student, labels_of(pair, self)
        end = full(out.features["prelogits"])
        compare = hint_of_batch if config.form == "code" else hint
        values = []
        with full_precision(out.logits):
            for k, one in enumerate(self.exits):
                logits, feature = one(full(out.features[self.needed.features[k]]))
                soft = soft_cross_entropy(logits, out.logits, config.temperature)
                value = (1 - config.soft_weight) * cross_entropy(logits, target) + config.soft_weight * soft
                value = value.mean() if config.form == "code" else value
                values.append(value + config.hint_weight * compare(feature, end) if k < self.hinted else value)
        return torch.stack(values).sum(0)
