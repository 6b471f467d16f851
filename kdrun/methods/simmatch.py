"""SimMatch (Zheng et al. 2022, arXiv 2203.06915): a strong view is to be as near to each labeled image as the weak one.

A bank holds an embedding of each labeled image. The teacher sees the weak view: p is its prediction, aligned so that
its mean is uniform, q = softmax(f . bank / temperature) how near each labeled image is. Each calibrates the other:
q'_i ~ q_i p[y_i] (unfolding), p' = smoothing p + (1 - smoothing) a, a_c the sum of the q_i of class c (aggregation).
p' labels the strong view where max p' >= threshold, and the strong view is to be as near to the bank as q' says.
"""

import math
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.run import RunConfig
from kdrun.core.device import full_precision
from kdrun.core.registry import register
from kdrun.core.seeding import subseed
from kdrun.core.world import world
from kdrun.data.views.view import Batch, together
from kdrun.methods.averaged import Averaged
from kdrun.methods.embedding import Embedding, EmbeddingConfig
from kdrun.methods.labeler import one_hot
from kdrun.methods.step import Context, Setup, Step, chosen
from kdrun.models.output import Output


def calibrated(p: Tensor, near: Tensor, label: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """p' (B, C), and q' (B, N).

    Args:
        p: (B, C) probabilities of classes.
        near: (B, N) those of labeled images, q.
        label: (N,) int64, their classes.
    """
    unfolded = near * p[:, label]
    unfolded = unfolded / unfolded.sum(1, keepdim=True).clamp(min=torch.finfo(unfolded.dtype).tiny)
    with full_precision(p):
        of_class = near @ one_hot(label, p.shape[1]).to(near.dtype)
    return smoothing * p + (1 - smoothing) * of_class, unfolded


def renewed(old: Tensor, new: Tensor, slot: Tensor, share: Tensor) -> Tensor:
    """What slots hold then, (B, D) of length 1: share old + (1 - share) new, of an image that is there twice its mean.

    Args:
        old: (B, D), in the slots of these images; new, likewise, their embeddings now.
        slot: (B,) int64.
        share: (B, 1).
    """
    same = (slot[:, None] == slot[None]).to(new.dtype)
    with full_precision(new):
        new = same @ new / same.sum(1, keepdim=True)
    # to the last bit, so that it does not matter which of them is written last
    return F.normalize(share * old + (1 - share) * new)[same.argmax(1)]


class SimMatchConfig(EmbeddingConfig):
    embedding_dim: int = Field(128, gt=0)
    """Width of the embeddings."""
    temperature: float = Field(0.1, gt=0)
    """What similarities are divided by."""
    relation_weight: float = Field(1.0, ge=0)
    """lambda_in, of nearness to labeled images."""
    bank_momentum: float = Field(0.7, ge=0, lt=1)
    """Share of the old embedding that stays in the bank; 0: ImageNet's."""
    start_step: int | None = Field(None, ge=0)
    """The first step that asks the bank; null: when each labeled image is in it."""
    teacher_decay: float | None = Field(None, ge=0, lt=1)
    """Of the averaged weights that see weak views, and whose embeddings the bank keeps: ImageNet's .999; null: the
    student itself does."""


@register("method", "simmatch")
class SimMatch(Embedding[SimMatchConfig]):
    """A strong view is to be as near to each labeled image as the weak one."""

    # deviates: of a labeled image that is in a batch twice the authors keep one embedding, whichever is written last,
    # we the mean; they first mix embeddings with random ones, we take the first as it is.
    Config = SimMatchConfig
    equation = (
        "H(y, p(weak)) + unlabeled_weight 1[max p' >= threshold] H(p', p(strong)) + relation_weight H(q', "
        "softmax(f(strong) . bank / temperature)), q likewise of f(weak), q' ~ q p[y_i], p' = smoothing p(weak) + "
        "(1 - smoothing) sum of q by class"
    )
    source = "Zheng et al. 2022, arXiv 2203.06915"

    bank: Tensor
    """(N, D) embeddings of length 1 of labeled images; random before one is met."""
    met: Tensor
    """(N,) bool."""
    label: Tensor
    """(N,) int64."""
    slot: Tensor
    """Position in the train array -> place in the bank."""

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        spec, device = self.spec, torch.get_default_device()
        labeled = setup.train_target >= 0  # on the CPU
        count = int(labeled.sum())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subseed(config.seed, "init", "bank"))
            self.register_buffer("bank", F.normalize(torch.randn(count, spec.embedding_dim)))
        self.register_buffer("met", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("label", setup.train_target[labeled].to(device), persistent=False)
        self.register_buffer("slot", (labeled.long().cumsum(0) - 1).to(device), persistent=False)
        self.start = math.ceil(count / config.schedule.batch_size) if spec.start_step is None else spec.start_step
        decay = spec.teacher_decay
        self.averaged = None if decay is None else Averaged(self.networks()["student"], decay)
        self.averaged_head = None if decay is None else Averaged(self.head, decay)

    def step(self, batch: Batch, ctx: Context) -> Step:
        known, weak, strong, kept, near = self.seen(batch)
        bank, own = self.bank.to(near.dtype, copy=True), self.embedded(strong)  # it is written before the backward pass
        with full_precision(bank):
            q = (near @ bank.T / self.spec.temperature).softmax(1)
            found = (own @ bank.T / self.spec.temperature).log_softmax(1)
        p = self.aligned(weak)
        smoothed, unfolded = calibrated(p, q, self.label, self.spec.smoothing)
        on = ctx.holds(lambda step: step >= self.start)
        out = self.learned(batch, known, strong, chosen(on, lambda: smoothed, lambda: p), ctx)
        relation = self.weight("relation_weight", ctx) * -(unfolded * found).sum(1).mean()
        self.remember(batch["labeled"].views["weak"].index, kept)
        return replace(out, losses={**out.losses, "relation": chosen(on, lambda: relation, lambda: relation * 0)})

    def seen(self, batch: Batch) -> tuple[Output, Output, Output, Tensor, Tensor]:
        """Student on labeled images, teacher on weak views, student on strong ones; its embeddings of the first two."""
        labeled, (weak, strong) = batch["labeled"].views["weak"], batch["unlabeled"].views.values()
        if self.averaged is None or self.averaged_head is None:
            known, taught, new = self.joint([labeled, weak, strong])
            return known, taught.detach(), new, self.embedded(known).detach(), self.embedded(taught).detach()
        known, new = self.joint([labeled, strong])
        self.averaged.follow(self.networks()["student"])
        self.averaged_head.follow(self.head)
        shown = self.averaged(together([labeled, weak]), self.features())
        own, taught = shown.split([len(labeled.index), len(weak.index)])
        head = self.averaged_head.network
        return known, taught, new, self.embedded(own, head), self.embedded(taught, head)

    @torch.no_grad()
    def remember(self, index: Tensor, embedding: Tensor) -> None:
        """Write labeled images of all ranks into the bank."""
        slot, new = world().gathered(self.slot[index]), world().gathered(embedding)
        share = self.met[slot].to(new.dtype)[:, None] * self.spec.bank_momentum
        rows = renewed(self.bank[slot].to(new.dtype), new, slot, share)
        self.bank.index_copy_(0, slot, rows.to(self.bank.dtype))
        self.met.index_fill_(0, slot, True)
