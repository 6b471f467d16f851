"""Class activation maps: where in the image each class is seen (CAT-KD: Guo et al. 2023, arXiv 2304.12777)."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.features import TINY, FeatureTerm
from kdrun.losses.labels import full
from kdrun.losses.term import TermSpec, width


def activation_maps(map_: Tensor, classifier: Callable[[Tensor], Tensor], pool: int) -> Tensor:
    """w_k f at each position, pooled to pool x pool, w_k the classifier's weights without their bias.

    Pooling and classifier are both linear, so that a map is pooled first, which is less work.

    Args:
        map_: (B, D, H, W), what a network pools for its classifier.
        classifier: (..., D) -> (..., classes), one linear layer.

    Returns:
        (B, classes, pool, pool).
    """
    pooled = F.adaptive_avg_pool2d(full(map_), pool).movedim(1, -1)
    return full(classifier(pooled) - classifier(torch.zeros_like(pooled[:1, :1, :1]))).movedim(-1, 1)


def catkd(student: Tensor, teacher: Tensor, normalize: bool = False) -> Tensor:
    """Mean over classes and positions of (a_s - a_t)^2.

    Args:
        student: (B, classes, r, r).
        teacher: likewise.
        normalize: each map is of length 1.

    Returns:
        (B,).
    """
    student, teacher = full(student).flatten(2), full(teacher.detach()).flatten(2)
    if normalize:
        student, teacher = (F.normalize(x, dim=2, eps=TINY) for x in (student, teacher))
    return (student - teacher).square().flatten(1).mean(1)


@register("loss", "catkd")
class CATKD(FeatureTerm):
    """Each class is seen where the teacher sees it: `catkd` of the maps that both networks' own classifiers make."""

    equation = (
        "mean over classes and pool x pool positions of (a_s - a_t)^2, a = w_k f pooled, f the map before the "
        "classifier, w_k its weights; with normalize each a over its length"
    )
    source = "Guo et al. 2023, arXiv 2304.12777"
    # deviates: in the authors' code the classifiers of both networks have no bias, of the teacher it is cut off, which
    # changes its accuracy; ours keep it for their logits, and class activation maps know nothing of it.

    class Config(TermConfig):
        pool: int = Field(2, gt=0)
        """Side to which class activation maps are pooled."""
        normalize: bool = False
        """Whether each map is divided by its length: which positions count, not how much; the paper's for networks of
        different kinds."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        for role, dims in (("student", spec.student_dims), ("teacher", spec.teacher_dims)):
            width(dims, "map", role)
        if spec.student_classifier is None or spec.teacher_classifier is None:
            role = "student" if spec.student_classifier is None else "teacher"
            raise ConfigError(f"catkd needs a {role} with one linear layer on its pooled map, and this one has none")
        self._classifiers = spec.student_classifier, spec.teacher_classifier  # functions: not saved with the term

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, features=("map",), over_ranks="mean")

    def value(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        pool = int(self.config.pool)
        mine, other = (
            activation_maps(map_, classifier, pool)
            for map_, classifier in zip((student[0], teacher[0]), self._classifiers, strict=True)
        )
        return catkd(mine, other, self.config.normalize)
