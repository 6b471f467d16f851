"""Norm and direction of the embedding (KD++: Wang et al. 2023, arXiv 2305.17007)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.parts import TermConfig
from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.classes import class_means, count_of
from kdrun.losses.features import TINY, PenultimateTerm
from kdrun.losses.labels import full, labels_of, over_classes
from kdrun.losses.term import Pair, TeacherStatistics, TermSpec

DROPPED = 0.5  # share of the embedding that the adaptor drops


def nd(student: Tensor, teacher: Tensor, directions: Tensor) -> Tensor:
    """1 - <s, e> / max(|s|, |t|): 0 where the student's embedding points as its class does and is as long as t's.

    Args:
        student: (B, D).
        teacher: (B, D).
        directions: (B, D) e, of length 1: the teacher's mean embedding of each image's class.

    Returns:
        (B,).
    """
    student, teacher = full(student), full(teacher.detach())
    longer: Tensor = student.norm(dim=1).maximum(teacher.norm(dim=1)).clamp(min=TINY)
    return 1 - (student * directions.detach().to(student.dtype)).sum(1) / longer


@register("loss", "nd")
class ND(PenultimateTerm):
    """Embeddings are long and point to the teacher's mean of their class; an adaptor where the widths differ."""

    equation = (
        "1 - <s, c_y / |c_y|> / max(|s|, |t|), s and t embeddings, c_y the teacher's mean over the labeled images of "
        "class y"
    )
    source = "Wang et al. 2023, arXiv 2305.17007"
    # deviates: the authors round the means to four digits and take them over augmented images, we take those of clean
    # images, because then they are no matter of chance.

    directions: Tensor
    """(C, D) of length 1; NaN before `before`."""

    class Config(TermConfig):
        pass

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        missing = (count_of(spec.train_target, spec.num_classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise ConfigError(
                f"nd needs a labeled image of each class, and class {missing[0]} has none ({len(missing)} of "
                f"{spec.num_classes} classes); give more labels, see dataset.num_labels"
            )
        self.adapts = self.student_dim != self.teacher_dim
        if self.adapts:
            self.norm = nn.BatchNorm1d(self.student_dim)
            self.linear = nn.Linear(self.student_dim, self.teacher_dim)
        self.register_buffer("directions", torch.full((spec.num_classes, self.teacher_dim), torch.nan))

    def before(self, teacher: TeacherStatistics) -> None:
        self.directions.copy_(F.normalize(teacher(class_means, "prelogits"), eps=TINY))

    def forward(self, pair: Pair) -> Tensor:
        (student,), (teacher,) = self.given(pair)
        with full_precision(student):
            embedded = self._adapted(student, pair) if self.adapts else student
            return over_classes(labels_of(pair, self), lambda y: nd(embedded, teacher, self.directions[y]))

    def _adapted(self, student: Tensor, pair: Pair) -> Tensor:
        kept = pair.draw(*student.shape) >= DROPPED
        return torch.as_tensor(self.linear(self.norm(student) * kept / (1 - DROPPED)))
