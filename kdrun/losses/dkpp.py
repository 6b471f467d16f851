"""DKPP: the teacher's probabilities, those of all classes but the first shuffled (Furlanello et al. 2018)."""

import torch
from torch import Tensor

from kdrun.core.registry import register
from kdrun.losses.logits import LogitConfig, LogitTerm, kd
from kdrun.losses.term import Pair


def shuffled_but_first(logits: Tensor, drawn: Tensor) -> Tensor:
    """Logits in whose rows all but the largest change places.

    Args:
        logits: (B, C).
        drawn: (B, C) in [0, 1): the order of a row's numbers is that of its classes.

    Returns:
        (B, C).
    """
    first = torch.zeros_like(drawn).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    places = first.argsort(dim=1, stable=True)  # of all others, and that of the first at the end
    return logits.scatter(1, places, logits.gather(1, (drawn + first).argsort(dim=1, stable=True)))


@register("loss", "dkpp")
class DKPP(LogitTerm):
    """What it is worth to know which class is like which: `kd` at T = 1 against `shuffled_but_first` of the teacher."""

    equation = "KL(shuffled p_t || p_s), at each step in an order of its own but for the largest of p_t, which stays"
    source = "Furlanello et al. 2018 (born-again networks), arXiv 1805.04770"

    class Config(LogitConfig):
        pass

    def forward(self, pair: Pair) -> Tensor:
        student, teacher = self.logits(pair)
        drawn = pair.draw(*teacher.shape).to(teacher.device)
        return kd(student, shuffled_but_first(teacher, drawn), 1.0)
