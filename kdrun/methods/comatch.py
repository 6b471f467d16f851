"""CoMatch (Li, Xiong and Hoi 2021, arXiv 2011.11183): labels that neighbors smooth, embeddings as alike as labels.

p is the student's prediction on a weak view, aligned so that its mean is uniform. A label is p' = smoothing p +
(1 - smoothing) sum_k a_k q_k, a = softmax(f . f_k / temperature) over a bank of the last embeddings f_k of weak views
and their labels q_k (p before smoothing; of labeled images the class), once it is full. It labels a first strong view
where max p' >= threshold. Embeddings of the first and a second strong view of all unlabeled images of the batch are to
be as similar as labels are (`graph_loss`).

The small-data form: the paper's for ImageNet has a network of averaged weights for the bank, and queues for the graph.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.run import RunConfig
from kdrun.core.device import full_precision
from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.data.views.view import Batch
from kdrun.methods.embedding import Embedding, EmbeddingConfig
from kdrun.methods.labeler import one_hot
from kdrun.methods.queue import Queue
from kdrun.methods.semi_supervised import label_of
from kdrun.methods.step import Context, Setup, Step


def smoothed(p: Tensor, embedding: Tensor, bank: Tensor, labels: Tensor, share: float, temperature: float) -> Tensor:
    """share p + (1 - share) softmax(f . bank / temperature) labels.

    Args:
        p: (B, C).
        embedding: (B, D), f.
        bank: (Q, D).
        labels: (Q, C).
    """
    with full_precision(p):
        near = (embedding @ bank.T / temperature).softmax(1)
        return share * p + (1 - share) * (near @ labels).to(p.dtype)


def graph_loss(first: Tensor, second: Tensor, p: Tensor, threshold: float, temperature: float) -> Tensor:
    """-mean_i sum_j W_ij log(S_ij + 1e-7), (): S = softmax_j(first_i . second_j / temperature), and W_ij is p_i . p_j
    where that is threshold or more, else 0, and 1 for i = j, over the sum of its row.

    Args:
        first: (B, D) embeddings of length 1; second, likewise.
        p: (B, C) labels; no gradient.
    """
    with full_precision(p):
        alike = p @ p.T
        alike = torch.where(torch.eye(len(p), dtype=torch.bool, device=p.device), 1.0, alike)
        graph = torch.where(alike >= threshold, alike, 0.0)
        graph = graph / graph.sum(1, keepdim=True)
        similar = (first @ second.T / temperature).softmax(1)
        return -(graph * (similar + 1e-7).log()).sum(1).mean()


class CoMatchConfig(EmbeddingConfig):
    bank: int = Field(2560, gt=0)
    """Embeddings of weak views that are kept, of labeled and unlabeled images."""
    graph_threshold: float = Field(0.8, ge=0, le=1)
    """Likeness of labels from which on two images are neighbors."""
    graph_weight: float = Field(1.0, ge=0)
    """lambda_c."""


@register("method", "comatch")
class CoMatch(Embedding[CoMatchConfig]):
    """Labels that neighbors smooth, embeddings as alike as labels."""

    # deviates: the authors smooth from the 7th step on, we from when the bank is full, their 6th, so that no part of a
    # label is that of empty places.
    Config = CoMatchConfig
    equation = (
        "H(y, p(weak)) + unlabeled_weight 1[max q >= threshold] H(q, p(strong)) - graph_weight mean_i sum_j W_ij log "
        "S_ij, q = smoothing p(weak) + (1 - smoothing) that of neighbors in the bank, W of q, S of embeddings over "
        "temperature"
    )
    source = "Li, Xiong and Hoi 2021, arXiv 2011.11183"
    views: ClassVar = {"labeled": ("weak",), "unlabeled": ("weak", "strong", "strong_2")}
    slope = 0.1

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors, bank = super().contradictions(config), cls.spec_of(config).bank
        count = sum(cls.batch_sizes(config).values())
        if bank < count:
            errors.append(f"method.bank: {bank} embeddings, and a step has {count} images; give that many or more")
        return errors

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.bank = Queue(self.spec.bank, embedding=(self.spec.embedding_dim,), label=(setup.num_classes,))

    def step(self, batch: Batch, ctx: Context) -> Step:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [labeled.views["weak"], *(unlabeled.views[name] for name in self.views["unlabeled"])]
        known, weak, strong, other = self.joint(views)
        f_known, f_weak, f_strong, f_other = map(self.embedded, (known, weak, strong, other))
        p = self.aligned(weak)
        target = self.smoothed(p, f_weak.detach())
        self.bank.push(embedding=f_weak, label=p)
        self.bank.push(embedding=f_known, label=one_hot(label_of(labeled), p.shape[1]))
        out = self.learned(batch, known, strong, target, ctx)
        f_strong, f_other, target = map(world().gathered, (f_strong, f_other, target))
        graph = graph_loss(f_strong, f_other, target, self.spec.graph_threshold, self.spec.temperature)
        return replace(out, losses={**out.losses, "graph": self.weight("graph_weight", ctx) * graph})

    def smoothed(self, p: Tensor, embedding: Tensor) -> Tensor:
        """(B, C), once the bank is full."""
        bank, labels = (self.bank.get_buffer(name).to(embedding.dtype) for name in ("embedding", "label"))
        new = smoothed(p, embedding, bank, labels, self.spec.smoothing, self.spec.temperature)
        return torch.where(self.bank.full, new, p)
