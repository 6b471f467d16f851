"""Tip-Adapter-F (Zhang et al. 2022, arXiv 2111.03930): a frozen CLIP with a cache of labeled images, its keys trained.

logits = scale f W^T + a exp(-b (1 - f F^T)) V, where f are image features and W class embeddings, both of length 1, F
(M, D) the keys of the M labeled images and V (M, C) their labels, one-hot. `kdrun.methods.tip_adapter` trains it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.config.derived import derived
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.teacher import MembersConfig, RecipeConfig
from kdrun.core.errors import DataError
from kdrun.core.registry import lookup, register
from kdrun.core.schema import Schema
from kdrun.data.views.view import View
from kdrun.models.factory import NetworkFactory
from kdrun.models.output import Output
from kdrun.models.weights import read_state
from kdrun.teachers.kind import MembersKind

FEATURE = "prelogits"  # of a CLIP: its image features, of length 1
ROWS = 4096  # images at once: their similarities to 16,000 keys are 0.3 GB


class AdapterConfig(Schema):
    """The cache beside a CLIP of Tip-Adapter-F (Zhang et al. 2022, arXiv 2111.03930), and what it is chosen by."""

    residual_ratio: float = Field(1.17, gt=0)
    """alpha, the weight of the cache in training; afterwards too where nothing is searched."""
    sharpness: float = Field(1.0, gt=0)
    """beta, as above."""
    passes: int = Field(10, gt=0)
    """Weak views of each labeled image whose features make its key."""
    search: bool = True
    """Whether both are chosen on the validation images at each evaluation; without such images they stay."""
    search_scale: list[Annotated[float, Field(gt=0.1)]] = Field(
        default_factory=lambda: [7.0, 3.0], min_length=2, max_length=2
    )
    """Where the grids end, that of sharpness and that of residual_ratio; both begin at 0.1 and leave out their end."""
    search_step: list[Annotated[int, Field(gt=0)]] = Field(
        default_factory=lambda: [200, 20], min_length=2, max_length=2
    )
    """Numbers in the grids, in the same order."""

    @property
    def grids(self) -> tuple[list[float], list[float]]:
        """Of sharpness, and of residual_ratio."""
        one, other = (
            [0.1 + i * (end - 0.1) / count for i in range(count)]
            for end, count in zip(self.search_scale, self.search_step, strict=True)
        )
        return one, other

    @property
    def remarks(self) -> list[str]:
        """One line for each value of training that its grid does not reach: the search can only move away from it.

        Not refused, because that is so of the authors' own grid for UCF-101: it ends at 2.855, and they train with 3.
        """
        if not self.search:
            return []
        return [
            f"search_scale: {name} is searched from {grid[0]:g} to {grid[-1]:.4g}, which leaves out {value:g}, with "
            "which the cache is trained; give a larger end of that grid"
            for name, grid in zip(("sharpness", "residual_ratio"), self.grids, strict=True)
            if not grid[0] <= (value := getattr(self, name)) <= grid[-1]
        ]


class Cache(nn.Module):
    """F, V, a and b.

    Args:
        target: (M,) int64, the class of each key.
        dim: D.
        chosen: whether a and b are chosen on validation images, so that a file of weights holds them.
    """

    target: Tensor
    residual_ratio: Tensor
    """() a."""
    sharpness: Tensor
    """() b."""

    def __init__(
        self, target: Tensor, dim: int, num_classes: int, residual_ratio: float, sharpness: float, chosen: bool = True
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.keys = nn.Parameter(torch.zeros(len(target), dim))
        self.register_buffer("target", target.clone())
        self.register_buffer("residual_ratio", torch.tensor(residual_ratio), persistent=chosen)
        self.register_buffer("sharpness", torch.tensor(sharpness), persistent=chosen)

    def forward(self, clip: Output) -> Tensor:
        """(B, C) float32, from what the CLIP gives with its image features."""
        return clip.logits.float() + self.residual_ratio * self.votes(clip.features[FEATURE], self.sharpness)

    def votes(self, image: Tensor, sharpness: Tensor | float) -> Tensor:
        """exp(-b (1 - f F^T)) V, (B, C) float32.

        Args:
            image: (B, D), f.
            sharpness: b.
        """
        label = (self.target[:, None] == torch.arange(self.num_classes, device=self.target.device)).float()
        kind = "cpu" if image.is_meta else image.device.type
        with torch.autocast(kind, enabled=False):  # a similarity that is off by 0.4 % is off by more in the exponent
            parts = image.float().split(ROWS)
            return torch.cat([(sharpness * (part @ self.keys.T - 1)).exp() @ label for part in parts])


class TipAdapter(nn.Module):
    """A CLIP with a cache, as a network of kdrun. Its one feature is the CLIP's."""

    def __init__(self, clip: nn.Module, cache: Cache) -> None:
        super().__init__()
        self.clip = clip
        self.cache = cache
        self.dims = clip.dims
        self.name = f"{clip.name} with a cache"

    @property
    def class_embeddings(self) -> Tensor | None:
        """The CLIP's."""
        found: Tensor | None = getattr(self.clip, "class_embeddings", None)
        return found

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        out: Output = self.clip(view, (FEATURE, *features))
        return Output(self.cache(out), out.features if features else {})


def trained(clip: nn.Module, run: Path, num_classes: int, adapter: AdapterConfig) -> TipAdapter:
    """A CLIP with the cache that the run of method=tip_adapter in the directory `run` has trained.

    Args:
        adapter: of that run; its a and b count where none were chosen.

    Raises:
        DataError: its file is gone or damaged.
    """
    path = run / "method.safetensors"
    state = {name.removeprefix("cache."): value for name, value in read_state(path, str(path)).items()}
    keys, target = state.get("keys"), state.get("target")
    dims: Any = clip.dims
    if keys is None or target is None or keys.shape != (len(target), dims[FEATURE]):
        raise DataError(f"{path}: does not hold the keys of a Tip-Adapter over {clip.name}; delete {run}")
    cache = Cache(target, keys.shape[1], num_classes, adapter.residual_ratio, adapter.sharpness, adapter.search)
    own = cache.state_dict().keys()  # files of before 0.2 hold a and b in any case
    cache.load_state_dict({name: value for name, value in state.items() if name in own})
    return TipAdapter(clip, cache)


class TipAdapterConfig(MembersConfig, RecipeConfig):
    """The CLIP in `members` with a cache of the labeled images, trained on the very labels of the student."""

    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    """Its cache."""

    @model_validator(mode="after")
    def of_one_clip(self) -> Self:
        if len(self.members) != 1:
            raise ValueError(f"a tip_adapter stands on one CLIP in teacher.members, got {len(self.members)}")
        if not self.members[0].kind().is_clip:
            raise ValueError(
                f"teacher.members.0.source: a tip_adapter stands on a CLIP, got {self.members[0].source}; choose "
                "open_clip or clip"
            )
        return self


@register("teacher", "tip_adapter")
class TipAdapterTeacher(MembersKind[TipAdapterConfig]):
    Config = TipAdapterConfig
    draws_labels = True

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        [clip] = self.members(factory, runs, role, outputs)
        return trained(clip, runs[role], factory.num_classes, self.spec.adapter)

    def outline(self, factory: NetworkFactory) -> nn.Module:
        [clip] = self.outlines(factory)
        dims: Any = clip.dims
        empty = torch.zeros(0, dtype=torch.int64)
        return TipAdapter(clip, Cache(empty, dims[FEATURE], factory.num_classes, 1.0, 1.0))

    def runs(self, config: RunConfig, role: str) -> dict[str, RunConfig]:
        """One of method=tip_adapter, on the labeled images and weak views of `config`, and those of the CLIP.

        Its recipe is that of Tip-Adapter-F, which students of any schedule share.
        """
        spec = self.spec
        length: dict[str, Any] = {"steps": spec.steps} if spec.steps is not None else {"epochs": spec.epochs or 20.0}
        # As the authors' loader counts: an epoch is whole batches, the last of which has what is left.
        schedule = spec.schedule or ScheduleConfig(
            **length, batch_size=256, epoch="ceil", last_batch="small", optimizer="adamw", lr=1e-3, weight_decay=0.01,
            optimizer_args={"eps": 1e-4}, decay=lookup("decay", "cosine", "teacher").Config(name="cosine"),
        )  # fmt: skip
        method = lookup("method", "tip_adapter", "teacher").Config(name="tip_adapter", **dict(spec.adapter))
        own = derived(
            config, method=method, students=[], teacher=spec.members[0], schedule=schedule,
            dataset=config.dataset.replace(split_seed=config.split_seed), seed=spec.seed,
        )  # fmt: skip
        return {role: own, **super().runs(config, role)}

    def contradictions(self, config: RunConfig) -> list[str]:
        if config.dataset.num_labels is not None or config.dataset.split_file is not None:
            return []
        return [
            f"{self.key}.source: tip_adapter keeps the labeled shots, and all images are labeled; give "
            "dataset.num_labels, shots times classes"
        ]
