"""Training the cache of Tip-Adapter-F (Zhang et al. 2022, arXiv 2111.03930); its teacher is the frozen CLIP.

The keys begin as the means of image features over weak views of the labeled images, of length 1, and learn by cross
entropy of the logits of `kdrun.teachers.tip_adapter`. deviates: the authors average features before they bring them to
length 1, we each of length 1, because that is what a CLIP gives here; they keep the epoch that is best on the test
images, and on ImageNet choose a and b there, we keep the last epoch and choose on validation images (of several, those
of the lowest NLL), because the test set chooses nothing.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.device import autocast
from kdrun.core.errors import KdrunError
from kdrun.core.registry import register
from kdrun.core.world import world
from kdrun.data.views.view import Batch, View
from kdrun.losses.term import Pair, width
from kdrun.methods.choice import Choice, Inputs
from kdrun.methods.method import Method
from kdrun.methods.pool import Start
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.output import Output
from kdrun.teachers.tip_adapter import FEATURE, AdapterConfig, Cache

NET = "adapter"


class TipAdapterConfig(MethodConfig, AdapterConfig):
    pass


@register("method", "tip_adapter")
class TipAdapterF(Method[TipAdapterConfig]):
    """Features of labeled images are keys of a cache over a frozen CLIP, and are learned."""

    Config = TipAdapterConfig
    equation = "H(y, softmax(z_CLIP + residual_ratio exp(-sharpness (1 - <f, keys>)) labels))"
    source = "Zhang et al. 2022, arXiv 2111.03930"

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if setup.teacher is None:
            raise KdrunError(f"method={config.method.name} was built without a teacher")
        spec = self.spec
        self.clip = setup.teacher
        labeled = (setup.train_target >= 0).nonzero().squeeze(1)
        self.row = torch.zeros(len(setup.train_target), dtype=torch.int64, device=labeled.device)
        self.row[labeled] = torch.arange(len(labeled), device=labeled.device)  # of each labeled image its key
        dim = width(setup.teacher.dims, FEATURE, "teacher")
        target = setup.train_target[labeled]
        self.cache = Cache(target, dim, setup.num_classes, spec.residual_ratio, spec.sharpness, chosen=spec.search)
        self.loss_sets[NET] = self._loss_set({}, {})

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(teacher=True, teacher_features=(FEATURE,), students=(0, 0), over_ranks="mean")

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors = []
        kind = config.teacher.kind()
        if kind.present and not kind.is_clip:
            errors.append(
                f"teacher.source: method=tip_adapter stands on a CLIP, got {config.teacher.source}; choose open_clip "
                "or clip"
            )
        if config.dataset.num_labels is None and config.dataset.split_file is None:
            errors.append(
                "method=tip_adapter keeps the labeled shots, and all images are labeled; give dataset.num_labels, "
                "shots times classes"
            )
        return errors

    @property
    def headline(self) -> str:
        return NET

    @torch.no_grad()
    def before(self, start: Start) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """The keys: each labeled image is seen `passes` times, in batches that begin at an epoch's beginning."""
        if not start.fresh:
            return {}
        count, size = len(self.cache.target), self.batch_sizes(self.config)["labeled"]
        sums, left = torch.zeros_like(self.cache.keys), self.spec.passes * count
        period, steps = count // math.gcd(count, size), -(-left // size)  # an epoch begins with a batch every `period`
        if self.config.schedule.last_batch == "small":
            period = -(-count // size)
            steps = self.spec.passes * period
        first = -(-start.first // period) * period
        with autocast(start.pool.device, start.pool.precision):
            for step in range(first, first + steps):
                view = start.batches(step)["labeled"].views["weak"]
                image = world().gathered(self.clip(view, (FEATURE,)).features[FEATURE].float())[:left]
                index = world().gathered(view.index)[:left]
                sums.index_add_(0, self.row.to(index.device)[index], image)
                left -= len(image)
            self.cache.keys.copy_(F.normalize(sums, dim=1))
        return {}

    def step(self, batch: Batch, ctx: Context) -> Step:
        samples = batch["labeled"]
        view = samples.views["weak"]
        logits = self.cache(self.clip(view, (FEATURE,)))
        pair = Pair(Output(logits, {}), None, samples.target, view.index, ctx.progress, ctx.draw)
        return Step(self.losses().target(pair))

    def predict(self, view: View) -> dict[str, Tensor]:
        return self._answer(self._asked(view))

    def choice(self) -> Choice | None:
        if not self.spec.search:
            return None
        values = {"residual_ratio": self.cache.residual_ratio, "sharpness": self.cache.sharpness}
        return Choice(net=NET, values=values, inputs=self._asked, candidates=self._candidates, apply=self._answer)

    def _asked(self, view: View) -> dict[str, Tensor]:
        """Logits (B, C) of the CLIP and its image features (B, D)."""
        out = self.clip(view, (FEATURE,))
        return {"zero_shot": out.logits.float(), "image": out.features[FEATURE].float()}

    def _answer(self, asked: Inputs) -> dict[str, Tensor]:
        votes = self.cache.votes(asked["image"], self.cache.sharpness)
        return {NET: asked["zero_shot"] + self.cache.residual_ratio * votes}

    def _candidates(self, asked: Inputs) -> Iterator[tuple[tuple[float, ...], Tensor]]:
        sharpness, residual_ratio = self.spec.grids
        for b in sharpness:
            votes = self.cache.votes(asked["image"], b)
            for a in residual_ratio:
                yield (a, b), asked["zero_shot"] + a * votes
