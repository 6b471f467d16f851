"""Peers with FixMatch's unlabeled images: what the others are sure of labels a student's strong views.

Ours, no paper's: `peer_distill` (Gore et al. 2025, arXiv 2511.18826) on labeled images, and for each student k the
unlabeled term of `fixmatch` (Sohn et al. 2020, arXiv 2001.07685), unlabeled_weight * mean_x 1[max q_k >= threshold]
l(argmax q_k, p_k(strong)), whose label comes from the other networks. On the weak view, at temperature 1 and without
gradient, q_k is the mean of the other students' probabilities (labeler: peers), the teacher's (teacher), or
w(x) p_T + (1 - w(x)) mean_{j != k} p_j (both), where w(x) in [0, 1] is the weight of `method.uncertainty`, which
normalize_weights does not touch here. l are the terms of `loss` against labels with their weights: of 0.4 CE, 0.4 CE.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.registry import lookup, register
from kdrun.data.views.view import Batch, View
from kdrun.losses.term import Pair
from kdrun.methods.fixmatch import FixMatch, FixMatchConfig, histogram
from kdrun.methods.labeler import Seen
from kdrun.methods.peer_distill import PeerConfig, PeerDistill
from kdrun.methods.semi_supervised import label_of
from kdrun.methods.step import Context, Guesses, Step


class PeerFixMatchConfig(PeerConfig, FixMatchConfig):
    labeler: Literal["peers", "teacher", "both"] = "peers"
    """Who labels a student's unlabeled images. both: the teacher as far as it is sure of an image."""


@register("method", "peer_fixmatch")
class PeerFixMatch(PeerDistill[PeerFixMatchConfig], FixMatch[PeerFixMatchConfig]):
    """What the others are sure of labels a student's strong views."""

    Config = PeerFixMatchConfig
    equation = (
        "for each student k: as peer_distill + unlabeled_weight 1[max q_k >= threshold] l(argmax q_k, p_k(strong)), "
        "q_k of the others, l of loss"
    )
    source = "ours; made of Gore et al. 2025, arXiv 2511.18826, and Sohn et al. 2020, arXiv 2001.07685"

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return replace(super().needs(config), streams=FixMatch.needs(config).streams)

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors, spec = super().contradictions(config), cls.spec_of(config)
        labeler, uncertainty = spec.labeler, spec.uncertainty.name
        if labeler != "peers" and not config.needs_teacher:
            errors.append(
                f"method.labeler: {labeler} asks the teacher, and no term of loss needs one; choose peers, or a loss "
                "against the teacher, e.g. loss=kd_40_40"
            )
        elif labeler == "both" and not lookup("uncertainty", uncertainty, "method.uncertainty.name").weighs:
            errors.append(
                f"method.labeler: both shares by how sure the teacher is, which method/uncertainty={uncertainty} does "
                "not tell; choose another uncertainty, or labeler peers or teacher"
            )
        if "target" not in config.sides:
            errors.append(
                "loss: no term works against labels, so unlabeled images would teach nothing; add one, e.g. "
                "loss=kd_40_40, or choose method=peer_distill"
            )
        return errors

    def step(self, batch: Batch, ctx: Context) -> Step:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        teacher, weight, metrics = self.ask(labeled.views["weak"], ctx)
        known, weak, strong = zip(*(self.outputs(batch, k) for k in range(len(self.students))), strict=True)
        losses = self.together(self.beside(labeled, known, teacher, ctx), weight, ctx)
        labels = self.labels(unlabeled.views["weak"], [output.logits for output in weak], ctx)
        index = unlabeled.views["strong"].index
        confidences, targets, weights = [], [], []
        for k, name in enumerate(self.students):
            seen = Seen(labels[k], index, known[k].logits.detach(), label_of(labeled), ctx.progress)
            target, weight = self.targets(unlabeled, seen, ctx)
            pair = Pair(strong[k], None, target, index, ctx.progress, ctx.again().draw)
            losses |= {f"{name}/{term}": value for term, value in self.unlabeled(pair, weight, ctx, k).items()}
            confidences.append(labels[k].amax(1))
            targets.append(target)
            weights.append(weight)
        # all students' together
        guesses = Guesses(index.repeat(len(weights)), torch.cat(targets), torch.cat(weights) > 0)
        return Step(losses, {**metrics, **histogram(torch.cat(confidences))}, guesses)

    def labels(self, view: View, logits: list[Tensor], ctx: Context) -> list[Tensor]:
        """q_k (B, C) of every student.

        Args:
            view: weak views of unlabeled images.
            logits: (B, C) of every student for them.
        """
        own = [z.detach().softmax(1) for z in logits]
        peers = [torch.stack(own[:k] + own[k + 1 :]).mean(0) for k in range(len(own))]
        labeler = self.spec.labeler
        if labeler == "peers" or self.teacher is None or self.uncertainty is None:  # others are refused without one
            return peers
        output = self.teacher(view, self.uncertainty.features)
        teacher = output.logits.softmax(1)
        if labeler == "teacher":
            return [teacher] * len(peers)
        share = self.uncertainty.weight(view, output, ctx)[:, None]
        return [share * teacher + (1 - share) * mean for mean in peers]
