"""How sure the teacher is of an image, as a weight in [0, 1] on the terms against it: 1 sure, 0 as unsure as can be.

Total uncertainty is read off one pass (entropy, max_prob); epistemic uncertainty off several passes or networks that
may disagree (mc_dropout, deep_ensemble), or off the evidence that a teacher trained for it gives (evidential). H is
Shannon's entropy, C the number of classes, everything at temperature 1.
"""

import math
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.parts import UncertaintyConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.data.views.view import View
from kdrun.losses.labels import full
from kdrun.losses.logits import renyi_entropy
from kdrun.methods.step import Context
from kdrun.models.output import Output
from kdrun.teachers.teacher import Teacher


def entropy_weight(logits: Tensor) -> Tensor:
    """1 - H(p) / log C (arXiv 2511.18826, w(x)). (B, C) -> (B,)."""
    return (1 - renyi_entropy(logits, 1.0) / math.log(logits.shape[1])).clamp(0, 1)


def max_prob_weight(logits: Tensor) -> Tensor:
    """(C max p - 1) / (C - 1): the largest probability, moved so that a uniform p counts 0. (B, C) -> (B,)."""
    classes = logits.shape[1]
    return ((classes * full(logits).softmax(1).amax(1) - 1) / (classes - 1)).clamp(0, 1)


def agreement(logits: Tensor) -> Tensor:
    """1 - (H(mean_k p_k) - mean_k H(p_k)) / log min(K, C): 1 where all K agree, 0 where they differ as much as K can.

    The difference is the mutual information of label and member (Houlsby et al. 2011, arXiv 1112.5745).

    Args:
        logits: (K, B, C).

    Returns:
        (B,).
    """
    p = full(logits).softmax(2)
    # log(0) would make 0 log 0 not a number
    entropies = [-(q * q.clamp(min=1e-30).log()).sum(-1) for q in (p.mean(0), p)]
    information = entropies[0] - entropies[1].mean(0)
    return (1 - information / math.log(min(len(p), p.shape[2]))).clamp(0, 1)


def evidential_weight(logits: Tensor) -> Tensor:
    """1 - C / sum_j a_j, a = softplus(z) + 1: 0 without evidence (Sensoy et al. 2018, arXiv 1806.01768).

    Args:
        logits: (B, C) of a teacher trained with the loss `evidential`.

    Returns:
        (B,).
    """
    return 1 - logits.shape[1] / (F.softplus(full(logits)) + 1).sum(1)


def confident_errors(logits: Tensor, target: Tensor) -> float:
    """Share of the errors on which the entropy weight is above 1/2, in [0, 1]; 0 where there is no error.

    Args:
        logits: (N, C), the teacher's.
        target: (N,) int64.
    """
    wrong = logits.argmax(1) != target
    trusted = wrong & (entropy_weight(logits) > 0.5)
    return (trusted.sum() / wrong.sum().clamp(min=1)).item()


def confident_errors_warning(logits: Tensor, target: Tensor, split: str) -> str | None:
    """One line where errors that the teacher is sure of dominate: more than half of them weigh more than 1/2 (ours).

    Weighting by entropy rests on errors being unsure; the paper (arXiv 2511.18826) names this as its risk.
    """
    share = confident_errors(logits, target)
    if share <= 0.5:
        return None
    return (
        f"the teacher is sure of {share:.0%} of its errors on the {split} images (entropy weight above 1/2): weighting "
        "by its entropy cannot tell them from what it knows"
    )


class Uncertainty:
    """One kind. A subclass has a `Config` and `weight`."""

    Config: ClassVar[type[UncertaintyConfig]]
    weighs: ClassVar[bool] = True
    """False: all images count alike."""
    features: ClassVar[tuple[str, ...]] = ()
    """Features that the teacher's pass must give."""

    def __init__(self, config: Any, teacher: Teacher) -> None:
        """Raises ConfigError for a teacher that cannot tell."""
        self.config = config
        self.teacher = teacher

    def weight(self, view: View, output: Output, ctx: Context) -> Tensor:
        """(B,) in [0, 1], without gradient.

        Args:
            output: what the teacher gives for `view`.
        """
        raise NotImplementedError

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        """What in the configuration does not go together, one line each."""
        return []


@register("uncertainty", "none")
class NoUncertainty(Uncertainty):
    weighs = False

    class Config(UncertaintyConfig):
        pass

    def weight(self, view: View, output: Output, ctx: Context) -> Tensor:
        return output.logits.new_ones(len(output.logits))


@register("uncertainty", "entropy")
class Entropy(Uncertainty):
    class Config(UncertaintyConfig):
        pass

    def weight(self, view: View, output: Output, ctx: Context) -> Tensor:
        return entropy_weight(output.logits)


@register("uncertainty", "max_prob")
class MaxProb(Uncertainty):
    class Config(UncertaintyConfig):
        pass

    def weight(self, view: View, output: Output, ctx: Context) -> Tensor:
        return max_prob_weight(output.logits)


@register("uncertainty", "mc_dropout")
class MCDropout(Uncertainty):
    """Agreement of passes with dropout (Gal and Ghahramani 2016, arXiv 1506.02142); the terms see the pass without."""

    class Config(UncertaintyConfig):
        passes: int = Field(8, ge=2)
        """K."""

    def __init__(self, config: Any, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        if not teacher.has_dropout:
            raise ConfigError(
                f"method.uncertainty: mc_dropout needs a teacher with dropout, and {teacher.name} has none; e.g. "
                "teacher=wrn_40_2 teacher.model.args.drop_rate=0.1"
            )

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        if not config.schedule.graph:
            return []
        return [
            "method.uncertainty: mc_dropout draws from a seed of its own in each step, which a captured step cannot; "
            "set schedule.graph=false, or choose another uncertainty"
        ]

    def weight(self, view: View, output: Output, ctx: Context) -> Tensor:
        return agreement(self.teacher.mc_samples(view, self.config.passes, ctx.subseed("mc_dropout")))


@register("uncertainty", "deep_ensemble")
class DeepEnsemble(Uncertainty):
    """Agreement of an ensemble's members (Lakshminarayanan et al. 2017, arXiv 1612.01474)."""

    features = ("members",)

    class Config(UncertaintyConfig):
        pass

    def weight(self, view: View, output: Output, ctx: Context) -> Tensor:
        return agreement(output.features["members"].transpose(0, 1))

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        if "members" in config.teacher.kind().features:
            return []
        return [
            f"method.uncertainty: deep_ensemble needs several teachers, teacher.source is {config.teacher.source}; "
            "choose ensemble"
        ]


@register("uncertainty", "evidential")
class Evidential(Uncertainty):
    class Config(UncertaintyConfig):
        pass

    def weight(self, view: View, output: Output, ctx: Context) -> Tensor:
        return evidential_weight(output.logits)

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        if config.teacher.kind().trained_with("evidential"):
            return []
        loss = getattr(config.teacher, "loss", None)
        given = f"teacher.source is {config.teacher.source}" if loss is None else f"teacher.loss is {loss}"
        return [
            f"method.uncertainty: evidential needs a teacher trained with that loss, and {given}; "
            "set teacher.loss=evidential (with source=train)"
        ]
