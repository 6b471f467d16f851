"""Contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv 1910.10699), in its exact mode.

Linear embeddings u of the student's and v of the teacher's penultimate feature, of unit norm, are to be near for one
image and far for images of different classes. What they are held against lies in two memories, one embedding for each
training image.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import register
from kdrun.losses.features import PenultimateTerm
from kdrun.losses.labels import full, labels_of
from kdrun.losses.term import Pair, TermSpec


def nce(positive: Tensor, negative: Tensor, log_z: Tensor, num_data: int) -> Tensor:
    """-log(h / (h + K/N)) of the positive - sum_k log((K/N) / (h_k + K/N)) of the negatives, h = e^score / Z (eq. 18).

    Args:
        positive: (B,), scores u.v / temperature.
        negative: (B, K).
        log_z: (), logarithm of Z.
        num_data: N, the images that negatives are drawn from.

    Returns:
        (B,).
    """
    # deviates: the code adds 1e-7 to each denominator, we need not, because this form takes no logarithm of 0.
    shift = log_z + math.log(negative.shape[1] / num_data)
    return F.softplus(shift - full(positive)) + F.softplus(full(negative) - shift).sum(1)


def of_other_classes(uniform: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """Rows of images of other classes, each with the same probability, with replacement.

    Args:
        uniform: (B, K), numbers in [0, 1).
        target: (B,) int64, classes.
        count: (C,) int64, images of each class; row 0 is the first image of class 0, the classes follow one another.

    Returns:
        (B, K) int64.
    """
    # deviates: the code draws without replacement where a class has K others, we never do, because with it a draw needs
    # K numbers instead of N. The expectation is the same.
    first, own = (count.cumsum(0) - count)[target, None], count[target, None]
    others = count.sum() - own
    drawn = (uniform * others).long().minimum(others - 1)  # rounding may reach the end
    return drawn + own * (drawn >= first)


def _first(kind: str, count: int, dim: int) -> Tensor:
    """(N, D) embeddings of images that no step has met."""
    if kind == "uniform":
        return (2 * torch.rand(count, dim) - 1) * math.sqrt(3 / dim)
    return F.normalize(torch.randn(count, dim))


@register("loss", "crd")
class CRD(PenultimateTerm):
    """An image's features in student and teacher are told from those of other images, by `nce` against a memory each.

    Negatives are labeled training images of another class than the sample's target. An unlabeled image may be a sample
    where the method gives it a class, never a negative. Z is N times the mean of e^score in the first batch, as in the
    code.
    """

    equation = (
        "-log h/(h + K/N) - sum of K = num_negatives others log (K/N)/(h_k + K/N), h = e^(u.v / temperature) / Z, both "
        "ways, u and v of embedding_dim, one of them from a memory with momentum, init at first"
    )
    source = "Tian, Krishnan and Isola 2020, arXiv 1910.10699"

    student_memory: Tensor
    """(N, D), unit norm; sorted by class, images without a label last."""
    teacher_memory: Tensor
    log_z: Tensor
    """(2,), log Z of the student's and of the teacher's scores; -inf before the first batch."""
    row: Tensor
    """(N,) int64, position in the train array -> row of the memories."""
    count: Tensor
    """(C,) int64, labeled images of each class."""

    class Config(TermConfig):
        num_negatives: int = Field(16384, gt=0)
        embedding_dim: int = Field(128, gt=0)
        temperature: float = Field(0.07, gt=0)
        momentum: float = Field(0.5, ge=0, lt=1)
        """Share of the old embedding that stays in the memory."""
        init: Literal["unit", "uniform"] = "unit"
        """What the memories hold before an image is met: unit: random vectors of length 1, as later; uniform: the
        authors' code, numbers in +-sqrt(3 / embedding_dim)."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        self.student_embedding = nn.Linear(self.student_dim, config.embedding_dim)
        self.teacher_embedding = nn.Linear(self.teacher_dim, config.embedding_dim)
        target = spec.train_target
        count = target[target >= 0].bincount(minlength=spec.num_classes)
        if (count > 0).sum() < 2:
            raise ConfigError("crd draws negatives from other classes, and the labeled images have fewer than two")
        self.num_data = int(count.sum())
        by_class = target.where(target >= 0, spec.num_classes).argsort(stable=True)
        device = torch.get_default_device()  # meta where a run is checked
        self.register_buffer("row", by_class.argsort().to(device), persistent=False)
        self.register_buffer("count", count.to(device), persistent=False)
        self.register_buffer("log_z", torch.full((2,), -math.inf))
        for role in ("student", "teacher"):
            self.register_buffer(f"{role}_memory", _first(config.init, len(target), config.embedding_dim))
        self._has_z = False  # whether this process has seen log_z set: asking the device would wait for it

    @classmethod
    def needs(cls, config: Any) -> Needs:
        # gathered: or the memories would lack the images that other ranks have seen
        return replace(super().needs(config), index=True, over_ranks="gathered")

    def forward(self, pair: Pair) -> Tensor:
        target = labels_of(pair, self)
        if target.ndim != 1:
            raise KdrunError("loss.crd needs one class for each sample, this stream's labels are probabilities")
        (student,), (teacher,) = self.given(pair)
        with full_precision(student):
            u = F.normalize(self.student_embedding(student))
            v = F.normalize(self.teacher_embedding(teacher))
            pair.memo.update(student=u.detach(), teacher=v.detach())
            rows = self.row[pair.index]
            negatives = of_other_classes(pair.draw(len(rows), self.config.num_negatives), target, self.count)
            of_student = self._scores(u, self.teacher_memory, rows, negatives)
            of_teacher = self._scores(v, self.student_memory, rows, negatives)
            if not self._has_z:
                found = torch.stack([self._log_z(*of_student), self._log_z(*of_teacher)])
                self.log_z = self.log_z.where(self.log_z.isfinite(), found)  # a resumed run has it
                self._has_z = True
            student_log_z, teacher_log_z = self.log_z
            return nce(*of_student, student_log_z, self.num_data) + nce(*of_teacher, teacher_log_z, self.num_data)

    @torch.no_grad()
    def _log_z(self, positive: Tensor, negative: Tensor) -> Tensor:
        scores = torch.cat([positive[:, None], negative], 1)
        return scores.logsumexp((0, 1)) + math.log(self.num_data / scores.numel())

    def _scores(self, anchor: Tensor, memory: Tensor, rows: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Of the positives (B,) and the negatives (B, K)."""
        # All N products and a choice among them: twenty times faster than gathering B * K embeddings, which are 0.5 GB.
        every = anchor @ memory[: self.num_data].T
        positive = (anchor * memory[rows]).sum(1)
        return positive / self.config.temperature, every.gather(1, negatives) / self.config.temperature

    def after_step(self, pair: Pair) -> None:
        rows, momentum = self.row[pair.index], self.config.momentum
        for memory, role in ((self.student_memory, "student"), (self.teacher_memory, "teacher")):
            memory.index_copy_(0, rows, F.normalize(momentum * memory[rows] + (1 - momentum) * pair.memo[role]))
