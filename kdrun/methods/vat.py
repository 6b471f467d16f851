"""VAT, virtual adversarial training (Miyato et al. 2018, arXiv 1704.03976): a prediction bears the worst small change.

L = terms of `loss` against labels, on labeled images, + w(t) mean_unlabeled KL(p(u) || p(u + r)) + entropy_weight
mean_unlabeled H(p(u)), p(u) of the divergence without gradient, where r, of length epsilon, is where the divergence
grows fastest: the direction of its gradient at u + xi d, of a random d of length 1 (a step of the power method). u and
r are normalised images, so a length depends on how `views` normalise. w rises to unlabeled_weight. The running
statistics of batch normalisation are those of labeled images.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.core.device import full_precision
from kdrun.core.registry import register
from kdrun.core.seeding import normal
from kdrun.data.views.view import Batch, View
from kdrun.losses.labels import full
from kdrun.losses.logits import kl, renyi_entropy
from kdrun.losses.term import risen
from kdrun.methods.consistency import RampedConfig
from kdrun.methods.semi_supervised import SemiSupervised
from kdrun.methods.step import Context, Step


class VATConfig(RampedConfig):
    unlabeled_weight: float = Field(0.3, ge=0)
    """What the weight of the divergence rises to."""
    entropy_weight: float = Field(0.06, ge=0)
    """Of the entropy of predictions on unlabeled images, from the start; 0: none."""
    epsilon: float = Field(6.0, gt=0)
    """Length of the change, in normalised images."""
    # deviates: the paper has 1e-6, of which float32 leaves rounding: to the direction that float64 finds, the cosine is
    # 0.0 (WRN-16-2 on digits of 32 pixels, after 0, 20 and 120 steps). It is 0.99, 0.99 and 1.00 with 0.01, and 0.87,
    # 0.96 and 0.99 with 0.1; with the convolutions of TF32, torch's choice on CUDA, 0.69, 0.44 and 0.28 with 0.01, and
    # 0.87, 0.93 and 0.93 with 0.1.
    xi: float = Field(0.1, gt=0)
    """Length of the change at which the gradient is taken."""
    iterations: int = Field(1, gt=0)
    """Steps of the power method, a forward and a backward pass each."""


@register("method", "vat")
class VAT(SemiSupervised[VATConfig]):
    """A prediction on an unlabeled image bears the small change that moves it most."""

    Config = VATConfig
    equation = (
        "H(y, p) + min(t / warmup, 1) unlabeled_weight KL(p(u) || p(u + r)) + entropy_weight H(p(u)), |r| = epsilon, r "
        "along the gradient of KL at u + xi d"
    )
    source = "Miyato et al. 2018, arXiv 1704.03976"
    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}

    def step(self, batch: Batch, ctx: Context) -> Step:
        view = batch["unlabeled"].views["weak"]
        (known,) = self.joint([batch["labeled"].views["weak"]])
        new = self.aside(view)
        clean = full(new.logits.detach())
        moved = self.aside(self.moved(view, clean, ctx)).logits
        losses = {
            **self.terms(known, batch, ctx),
            "smoothness": self.weight("unlabeled_weight", ctx)
            * (risen(ctx.progress, self.spec.warmup) * kl(clean, full(moved)).mean()),
            "entropy": self.weight("entropy_weight", ctx) * renyi_entropy(new.logits, 1.0).mean(),
            **self.taught(batch, known, new, ctx, "weak"),
        }
        return Step(losses)

    def moved(self, view: View, clean: Tensor, ctx: Context) -> View:
        """The images, each changed by r.

        Args:
            clean: (B, C) logits of the view, without gradient.
        """
        network, spec = self.networks()["student"], self.spec
        images = network.adapt(view.pixels)

        def at(change: Tensor) -> View:
            return replace(view, pixels=(images + change) * network.std + network.mean)

        noise = normal(ctx.draw(*images.shape))
        with full_precision(images):
            if self.config.schedule.precision != "fp32":  # a difference to rounded logits would be that of rounding
                clean = self.aside(view, gradient=False).logits
            found = steepest(lambda change: full(self.aside(at(change)).logits), clean, noise, spec.xi, spec.iterations)
        return at(spec.epsilon * found)


def steepest(
    logits_at: Callable[[Tensor], Tensor], clean: Tensor, start: Tensor, xi: float, iterations: int = 1
) -> Tensor:
    """(B, ...) of length 1 each: where KL(softmax(clean) || softmax(logits_at(change))) grows fastest.

    Args:
        logits_at: (B, ...) changes -> (B, C) logits.
        clean: (B, C) logits of no change.
        start: (B, ...), random directions.
        xi: length of the changes at which the gradient is taken.
    """
    direction = unit(start)
    for _ in range(iterations):
        change = (xi * direction).requires_grad_()
        (gradient,) = torch.autograd.grad(kl(clean, logits_at(change)).sum(), change)
        direction = unit(gradient)
    return direction


def unit(rows: Tensor) -> Tensor:
    """(B, ...) of length 1 each, however short they are; 0 stays."""
    tiny, flat = torch.finfo(rows.dtype).tiny, rows.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=tiny)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / length.clamp(min=tiny)).view_as(rows)
