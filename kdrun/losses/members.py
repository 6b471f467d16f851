"""Losses against each of several teachers, weighed image by image: what AvgKD, EBKD and CA-MKD share."""

from typing import Any

from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError
from kdrun.losses.labels import full
from kdrun.losses.logits import kd
from kdrun.losses.term import Pair, Term, TermSpec, teacher_of

MEMBERS = "members"


def to_members(student_logits: Tensor, members: Tensor, temperature: float) -> Tensor:
    """`kd` against each teacher.

    Args:
        student_logits: (B, C).
        members: (B, K, C), the teachers' logits.

    Returns:
        (B, K).
    """
    count = members.shape[1]
    return kd(student_logits.repeat_interleave(count, 0), members.flatten(0, 1), temperature).view(-1, count)


class MembersTerm(Term):
    """The sum over an ensemble's teachers of their `kd` times a weight for each image."""

    class Config(TermConfig):
        temperature: float = Field(4.0, gt=0)
        """Of both networks in the divergence; weights are taken at 1."""

    def __init__(self, config: Any, spec: TermSpec) -> None:
        super().__init__(config, spec)
        if MEMBERS not in spec.teacher_dims:
            raise ConfigError(
                f"{config.name} weighs several teachers, and teacher.source={spec.teacher_source} is one; choose "
                "teacher=ensemble"
            )

    @classmethod
    def needs(cls, config: Any) -> Needs:
        return Needs(teacher=True, teacher_features=(MEMBERS,), over_ranks="mean")

    def forward(self, pair: Pair) -> Tensor:
        members = full(teacher_of(pair, self).features[MEMBERS].detach())
        each = to_members(pair.student.logits, members, self.config.temperature)
        return (self.shares(members, pair) * each).sum(1)

    def shares(self, members: Tensor, pair: Pair) -> Tensor:
        """The weight of each teacher. (B, K, C) -> (B, K)."""
        raise NotImplementedError

    def metrics(self, pair: Pair) -> dict[str, Tensor]:
        """How uneven the weights are: the largest of an image over their sum, in the mean."""
        if pair.teacher is None:
            return {}
        shares = self.shares(full(pair.teacher.features[MEMBERS]), pair)
        return {"largest_share": (shares.amax(1) / shares.sum(1)).mean()}
