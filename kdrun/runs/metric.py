"""Names of metrics: `split/net/metric`, and which of them are shares."""

import math
from dataclasses import dataclass, replace
from typing import Self

PERCENT = (
    "top1", "top5", "ece", "ece_equal_mass", "ece_classwise", "overconfidence", "confidence", "confidence_gap",
    "teacher_agreement", "precision", "coverage", "mask_rate", "pseudo_label_accuracy",
)  # fmt: skip

HIGHER = ("top1", "top5", "teacher_agreement")
"""Metrics of which more is better."""

LOWER = (
    "nll", "brier", "ece", "ece_equal_mass", "ece_classwise", "overconfidence", "aurc", "e_aurc", "teacher_kl",
)  # fmt: skip
"""Metrics of which less is better."""

ENOUGH = 100
"""Validation images for a temperature to say something: of one or two that are right it would be the least there is."""


def more_validation(fraction: float, count: int) -> str:
    """What to type, behind a line that `count` validation images, this fraction, are too few; "": no fraction would do.

    Up to half of the training images are asked for.
    """
    wanted = math.ceil(100 * fraction * ENOUGH / count) / 100 if count else 0
    return f": dataset.val_fraction={wanted:g}" if 0 < wanted <= 0.5 else ": more labeled images"


@dataclass(frozen=True)
class Metric:
    """The key of a figure in records: `test/student/top1`; `test/top1` where the network is the record's headline."""

    split: str
    """Images that it was measured on, or what measured it, such as linear_probe; "": a name alone."""
    net: str | None
    name: str

    @classmethod
    def parse(cls, key: str) -> Self:
        *above, name = key.split("/")
        split, *nets = above or [""]
        return cls(split, "/".join(nets) or None, name)

    def __str__(self) -> str:
        return "/".join(part for part in (self.split, self.net, self.name) if part)

    def of(self, net: str | None) -> Self:
        """The same of another network; None: of whichever is the headline."""
        return replace(self, net=net)

    def key(self, headline: str | None) -> str:
        """As a record with this headline has it."""
        return str(self.of(self.net or headline))


def is_percent(metric: str) -> bool:
    """Whether a metric is a fraction that is shown in percent."""
    return Metric.parse(metric).name.removeprefix("scaled_") in PERCENT
