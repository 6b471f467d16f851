"""Two losses that pull at the same parameters: how far apart they pull, and gradients without what cancels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdrun.core.world import world

Gradients = Sequence[Tensor | None]
Surgery = Callable[[Gradients, Gradients], list[Tensor | None]]


def conflict(first: Tensor, second: Tensor, at: Tensor, rows: int) -> Tensor:
    """Cosine of the gradients of two losses at the first `rows` rows of a tensor; NaN where one of them has none.

    Args:
        first: () loss; its graph and that of `second` stay for the backward pass.
        second: () loss.
        at: (B, D), what both losses were computed from.
        rows: images on which both losses depend.

    Returns:
        () float32 in [-1, 1], detached; below 0 the losses conflict. Over several ranks that of all their rows.
    """
    grads = [
        torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)[0] if loss.requires_grad else None
        for loss in (first, second)
    ]
    if grads[0] is None or grads[1] is None:
        return at.new_full((), torch.nan, dtype=torch.float32)
    one, other = (world().gathered(grad[:rows]).flatten().float() for grad in grads if grad is not None)
    return F.cosine_similarity(one, other, dim=0, eps=torch.finfo(torch.float32).tiny)


def pcgrad(first: Gradients, second: Gradients) -> list[Tensor | None]:
    """Sum of two gradients, each without its part against the other (PCGrad: Yu et al. 2020, arXiv 2001.06782).

    g_1 - min(g_1.g_2, 0) / |g_2|^2 g_2 + g_2 - min(g_1.g_2, 0) / |g_1|^2 g_1, products over all parameters that both
    losses have a gradient at; the gradients of the others are added up as they are.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return [a if b is None else b for a, b in zip(first, second, strict=True)]

    def product(k: int, m: int) -> Tensor:
        return torch.stack([(pair[k].float() * pair[m].float()).sum() for pair in both]).sum()

    against, tiny = product(0, 1).clamp(max=0), torch.finfo(torch.float32).tiny
    of_first, of_second = (1 - against / product(k, k).clamp(min=tiny) for k in (0, 1))
    return [
        a if b is None else b if a is None else of_first.to(a) * a + of_second.to(b) * b
        for a, b in zip(first, second, strict=True)
    ]


def aligned(first: Gradients, second: Gradients) -> list[Tensor | None]:
    """Sum of two gradients, the second without its part against the first (DHKD: Yang et al. 2024, arXiv 2411.08937).

    g_1 + g_2 - min(g_1.g_2, 0) / |g_1|^2 g_1, each gradient one vector over all parameters, 0 where it is None: so what
    is taken from the second also goes onto parameters that only the first has, as in the authors' code.
    """
    nothing = next((a.new_zeros((), dtype=torch.float32) for a in (*first, *second) if a is not None), torch.zeros(()))
    both = [
        (a.float() * b.float()).sum() for a, b in zip(first, second, strict=True) if a is not None and b is not None
    ]
    own = [a.float().square().sum() for a in first if a is not None]
    against = torch.stack([nothing, *both]).sum().clamp(max=0)
    of_first = 1 - against / torch.stack([nothing, *own]).sum().clamp(min=torch.finfo(torch.float32).tiny)
    scaled = [None if a is None else of_first.to(a) * a for a in first]
    return [a if b is None else b if a is None else a + b for a, b in zip(scaled, second, strict=True)]


SURGERIES: dict[str, Surgery] = {"pcgrad": pcgrad, "gradient_alignment": aligned}
"""By the key of a method that asks for it."""


def backward_with_surgery(
    first: Tensor, second: Tensor, parameters: Sequence[torch.nn.Parameter], surgery: Surgery = pcgrad
) -> None:
    """Fill the gradients of `parameters` with those of two () losses, put together. Takes two backward passes.

    Over several ranks each of the two is averaged before: the surgery is none of the means.
    """
    one = torch.autograd.grad(first, parameters, retain_graph=True, allow_unused=True)
    other = torch.autograd.grad(second, parameters, allow_unused=True)
    world().average([*one, *other])
    for parameter, gradient in zip(parameters, surgery(one, other), strict=True):
        parameter.grad = gradient
