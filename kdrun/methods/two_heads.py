"""A second head on the student's features, for the teacher; the rest is as in `kdrun.methods.sho`."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from kdrun.config.run import RunConfig
from kdrun.core.seeding import subseed
from kdrun.losses.term import width
from kdrun.methods.sho import FEATURE, SHO, SHOConfig
from kdrun.methods.step import Setup

T = TypeVar("T", bound=SHOConfig)


class TwoHeads(SHO[T]):
    """The student's own classifier for labels, `kd_head` for the teacher. A subclass says which head that is."""

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        kind, make = self.second_head(width(self.networks()["student"].dims, self.shared, "student"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subseed(config.seed, "init", "kd_head", kind))
            self.kd_head = make()

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors = super().contradictions(config)
        if "target" not in config.sides:
            errors.append(
                f"loss: method={config.method.name} needs a term against the labels; add one, or choose method=sho"
            )
        return errors

    def second_head(self, dim: int) -> tuple[str, Callable[[], nn.Module]]:
        """A name that seeds its first weights, and what makes the head of features (B, dim)."""
        raise NotImplementedError

    @property
    def shared(self) -> str:
        """What both heads read: the student's features before its classifier, of whatever layers that is made."""
        return "pooled" if "pooled" in self.networks()["student"].dims else FEATURE

    def parts(self, student: str) -> list[nn.Module]:
        return [*super().parts(student), self.kd_head]
