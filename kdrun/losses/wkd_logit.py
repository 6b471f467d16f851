"""Discrete Wasserstein distance of logits (WKD-L: Lv, Yang and Li 2024, arXiv 2412.08139).

Of its two parts this is the one about the other classes; -p_t,y log p_s,y beside it is the term `nkd` with gamma 0.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.losses.classes import FEWEST, count_of, similarity_by_label, similarity_by_teacher
from kdrun.losses.labels import full, labels_of, over_classes
from kdrun.losses.logits import LogitConfig, LogitTerm, above_zero
from kdrun.losses.term import Pair, TeacherStatistics, TermSpec, width

EPS = 1e-8  # of the authors' code, in cost and denominators


def sinkhorn(
    student: Tensor, teacher: Tensor, start: Tensor, cost: Tensor, regularizer: float, iterations: int
) -> Tensor:
    """sum_ij q_ij c_ij of the plan q_ij = u_i exp(-c_ij / regularizer) v_j after iterations of Sinkhorn's algorithm.

    Args:
        student: (B, C) probabilities.
        teacher: (B, C) probabilities.
        start: (B, C) the first u.
        cost: (C, C).

    Returns:
        (B,).
    """
    above_zero("regularizer", regularizer)
    cost = cost.detach().to(student.dtype).clamp(min=0) + EPS
    kernel = (-cost / regularizer).exp()
    u, v = start, teacher
    for _ in range(iterations):
        v = teacher / (u @ kernel + EPS)
        u = student / (v @ kernel.T + EPS)
    return ((u @ (kernel * cost)) * v).sum(1)


def wkd_logit(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, cost: Tensor, temperature: float,
    regularizer: float, iterations: int,
) -> Tensor:  # fmt: skip
    """`sinkhorn` between N(z / T) of both networks, N = softmax over the classes other than y.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: (B,) int64.
        cost: (C, C).

    Returns:
        (B,).
    """
    above_zero("temperature", temperature)
    if target.ndim != 1:
        raise ValueError(f"target must be class indices (B,), got {tuple(target.shape)}")
    # A class that has no mass in either distribution nor in the start has no part in the plan: so one matrix serves all
    # images, where the authors cut one out for each.
    y, logits = target[:, None], (full(student_logits), full(teacher_logits.detach()))
    s, t = ((z / temperature).scatter(1, y, -torch.inf).softmax(1) for z in logits)
    start = torch.full_like(t, 1 / (t.shape[1] - 1)).scatter(1, y, 0.0)
    return sinkhorn(s, t, start, cost, regularizer, iterations)


@register("loss", "wkd_logit")
class WKDLogit(LogitTerm):
    """Probabilities are moved to the teacher's at least cost; alike classes, to the teacher, cost less: `wkd_logit`."""

    equation = (
        "sum_ij q_ij c_ij, q of iterations of Sinkhorn's algorithm with regularizer, between softmax(z_s / "
        "temperature) and softmax(z_t / temperature) over classes != y; c_ij = 1 - exp(-kappa (1 - CKA_ij)), CKA of "
        "the teacher's features of the images of two classes"
    )
    source = "Lv, Yang and Li 2024, arXiv 2412.08139"

    cost: Tensor
    """(C, C); NaN before `before`."""

    class Config(LogitConfig):
        temperature: float = Field(8.0, gt=0)
        regularizer: float = Field(0.05, gt=0)
        """Of Sinkhorn's algorithm, the paper's lambda."""
        iterations: int = Field(10, gt=0)
        kappa: float = Field(1.0, gt=0)
        features: Literal["logits", "prelogits"] = "logits"
        """Of the teacher, that classes are held against each other by."""
        classes: Literal["labels", "teacher"] = "labels"
        """Whose images: those of each label, as many as the rarest has; or of all train images, the M / C of the
        highest probability of each class by the teacher (ours: few labels tell no similarity)."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        if config.features == "prelogits":
            width(spec.teacher_dims, "prelogits", "teacher")
        if spec.num_classes < 3:
            raise ConfigError(f"wkd_logit moves mass between the classes other than y; {spec.num_classes} are too few")
        rarest, at = count_of(spec.train_target, spec.num_classes).min(0)
        if config.classes == "labels" and rarest < FEWEST:
            raise ConfigError(
                f"classes: labels needs {FEWEST} labeled images of each class (of two, all classes are as alike), and "
                f"class {int(at)} has {int(rarest)}; set it to teacher"
            )
        self.register_buffer("cost", torch.full((spec.num_classes, spec.num_classes), torch.nan))

    def before(self, teacher: TeacherStatistics) -> None:
        config, own = self.config, self.config.classes == "teacher"
        feature = None if config.features == "logits" else config.features
        found = teacher(similarity_by_teacher if own else similarity_by_label, feature, everything=own)
        self.cost.copy_(1 - (-config.kappa * (1 - found)).exp())

    def forward(self, pair: Pair) -> Tensor:
        c, (student, teacher) = self.config, self.logits(pair)
        with full_precision(student):
            return over_classes(
                labels_of(pair, self),
                lambda y: wkd_logit(student, teacher, y, self.cost, c.temperature, c.regularizer, c.iterations),
            )
