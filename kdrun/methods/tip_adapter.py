"""Training the cache of Tip-Adapter-F (Zhang et al. 2022, arXiv 2111.03930); its teacher is the frozen CLIP.

The keys begin as the means of image features over weak views of the labeled images, of length 1, and learn by cross
entropy of the logits of `kdrun.teachers.tip_adapter`. deviates: the authors average features before they bring them to
length 1, we each of length 1, because that is what a CLIP gives here; they keep the epoch that is best on the test
images, and on ImageNet choose a and b there, we keep the last epoch and choose on validation images, because the test
set chooses nothing.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import KdrunError
from kdrun.core.registry import register
from kdrun.data.views.view import Batch, Predictor, View
from kdrun.losses.set import LossSet
from kdrun.losses.term import Pair, TermSpec, width
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.output import Output
from kdrun.teachers.tip_adapter import FEATURE, AdapterConfig, Cache

NET = "adapter"


@register("method", "tip_adapter")
class TipAdapterF(Method):
    num_students = (0, 0)
    always_teacher = True

    class Config(MethodConfig, AdapterConfig):
        pass

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if setup.teacher is None:
            raise KdrunError(f"method={config.method.name} was built without a teacher")
        spec: AdapterConfig = config.method  # type: ignore[assignment]
        self.clip = setup.teacher
        labeled = (setup.train_target >= 0).nonzero().squeeze(1)
        self.row = torch.zeros(len(setup.train_target), dtype=torch.int64, device=labeled.device)
        self.row[labeled] = torch.arange(len(labeled), device=labeled.device)  # of each labeled image its key
        dim = width(setup.teacher.dims, FEATURE, "teacher")
        target = setup.train_target[labeled]
        self.cache = Cache(target, dim, setup.num_classes, spec.residual_ratio, spec.sharpness)
        terms = TermSpec(setup.num_classes, len(setup.train_target), {}, {}, setup.train_target)
        self.loss_sets[NET] = LossSet(config.losses, config.seed, terms)
        self._seen: tuple[View, Output] | None = None

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

    def teacher_features(self) -> tuple[str, ...]:
        return (FEATURE,)

    @torch.no_grad()
    def prepare(self, batches: Callable[[int], Batch], first: int) -> None:
        """The keys: each labeled image is seen `passes` times, in batches that begin at an epoch's beginning."""
        spec: AdapterConfig = self.config.method  # type: ignore[assignment]
        count, size = len(self.cache.target), type(self).batch_sizes(self.config)["labeled"]
        period = count // math.gcd(count, size)  # steps after which an epoch begins with a batch
        first = -(-first // period) * period
        sums, left = torch.zeros_like(self.cache.keys), spec.passes * count
        for step in range(first, first - (-left // size)):
            view = batches(step)["labeled"].views["weak"]
            image = self.clip(view, (FEATURE,)).features[FEATURE].float()[:left]
            sums.index_add_(0, self.row.to(view.index.device)[view.index[:left]], image)
            left -= len(image)
        self.cache.keys.copy_(F.normalize(sums, dim=1))

    def step(self, batch: Batch, ctx: Context) -> Step:
        samples = batch["labeled"]
        view = samples.views["weak"]
        logits = self.cache(self.clip(view, (FEATURE,)))
        pair = Pair(Output(logits, {}), None, samples.target, view.index, ctx.progress, ctx.draw)
        return Step(self.losses().target(pair))

    def predictors(self) -> dict[str, Predictor]:
        return {NET: lambda view: self.cache(self._asked(view))}

    def consulted(self) -> dict[str, Predictor]:
        if not self.config.method.search:  # type: ignore[attr-defined]
            return {}
        return {
            "zero_shot": lambda view: self._asked(view).logits.float(),
            "image": lambda view: self._asked(view).features[FEATURE].float(),
        }

    def _asked(self, view: View) -> Output:
        """What the CLIP says of a view, which several ask for one after the other."""
        if self._seen is None or self._seen[0] is not view:
            self._seen = view, self.clip(view, (FEATURE,))
        return self._seen[1]

    @torch.no_grad()
    def settle(self, logits: dict[tuple[str, str], Tensor], val_target: Tensor | None) -> dict[tuple[str, str], Tensor]:
        self._seen = None
        spec: AdapterConfig = self.config.method  # type: ignore[assignment]
        if not spec.search or val_target is None:
            return logits
        chosen = best(self.cache, logits["val", "zero_shot"], logits["val", "image"], val_target, *spec.grids)
        self.cache.sharpness.fill_(chosen[0])
        self.cache.residual_ratio.fill_(chosen[1])
        out = dict(logits)
        for split in {split for split, _ in logits}:
            votes = self.cache.votes(logits[split, "image"], self.cache.sharpness)
            out[split, NET] = logits[split, "zero_shot"] + self.cache.residual_ratio * votes
        return out

    def fix(self) -> None:
        spec: AdapterConfig = self.config.method  # type: ignore[assignment]
        if not spec.search:
            self.cache.residual_ratio.fill_(spec.residual_ratio)
            self.cache.sharpness.fill_(spec.sharpness)

    def choices(self) -> dict[str, float]:
        if not self.config.method.search:  # type: ignore[attr-defined]
            return {}
        names = ("residual_ratio", "sharpness")
        return {f"val/{NET}/{name}": round(getattr(self.cache, name).item(), 6) for name in names}


def best(
    cache: Cache, zero_shot: Tensor, image: Tensor, target: Tensor, sharpness: Sequence[float],
    residual_ratio: Sequence[float],
) -> tuple[float, float]:  # fmt: skip
    """b and a of the highest accuracy; of several, those of the lowest NLL (ours: the authors take the first).

    Args:
        zero_shot: (N, C) logits of the CLIP.
        image: (N, D), its image features.
        target: (N,) int64.
    """
    grid, found = [], []
    for b in sharpness:
        votes = cache.votes(image, b)
        for a in residual_ratio:
            logs = zero_shot + a * votes
            grid.append((b, a))
            found.append(torch.stack([(logs.argmax(1) == target).sum().float(), F.cross_entropy(logs, target)]))
    values = torch.stack(found).tolist()
    return max(zip(grid, values, strict=True), key=lambda item: (item[1][0], -item[1][1]))[0]
