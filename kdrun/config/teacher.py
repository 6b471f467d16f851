"""Where the teacher comes from."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdrun.config.dataset import NumLabels
from kdrun.config.model import ModelConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.views import MixConfig
from kdrun.core.schema import FileContent, Schema


class CacheConfig(Schema):
    """Logits of the teacher that are computed once and shared by runs, students and seeds."""

    mode: Literal["off", "clean", "views"] = "off"
    """off: the teacher sees every view afresh; clean: images themselves, where views.weak has no randomness; views:
    every image has `num_views` weak views, the same in all runs, which students see too, one in each epoch."""
    num_views: int = Field(8, ge=1)
    """K of mode=views."""

    @field_validator("mode", mode="before")
    @classmethod
    def word(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of a bare off

    @property
    def draws(self) -> int:
        """Stored views of each image; 0: none."""
        return {"off": 0, "clean": 1, "views": self.num_views}[self.mode]

    def effective(self) -> "CacheConfig":
        """Without what has no effect."""
        return self if self.mode == "views" else CacheConfig(mode=self.mode)


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


class TeacherConfig(Schema):
    """Where the teacher comes from."""

    source: Literal["none", "train", "timm", "file", "ensemble", "open_clip", "clip", "tip_adapter"] = "none"
    """train: an ordinary supervised run of `model`, built once and shared; timm: published weights; file: weights from
    `path`; ensemble: `members` together; open_clip: a published CLIP, which tells classes by their names; clip: a CLIP
    trained by a run of method=contrastive on the upstream part of the dataset; tip_adapter: the CLIP in `members` with
    a cache of the labeled images, trained by a run of method=tip_adapter on the very labels of the student."""
    model: ModelConfig | None = None
    path: Annotated[str | None, FileContent(whole=True)] = None
    """Weights of a file teacher: safetensors, or a PyTorch file of plain tensors. Of an open_clip teacher also a folder
    as open_clip saves it (open_clip_config.json and weights), which needs no `model`."""
    pretrained: str | None = None
    """open_clip: the tag of published weights; beside `path`, the tag whose preprocessing the file expects.
    `local-dir:<folder>` is `path`."""
    prompts: list[str] | str | None = None
    """CLIPs: templates with {} for the class name, or the name of a dataset that has its own; null: the dataset's
    set, else "a photo of a {}."."""
    zeta: float | None = Field(None, gt=0)
    """CLIPs: logits are cosines divided by it; null: the network's own, exp(-logit_scale), .01 of OpenAI's."""
    strip_prefix: str = ""
    """Taken off the names in `path`, e.g. "module."."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Leading parts of names in `path` -> the network's, e.g. {linear: fc}."""
    members: list["TeacherConfig"] = Field(default_factory=list)
    """Teachers of an ensemble; the one CLIP of a tip_adapter."""
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    """tip_adapter: its cache."""
    loss: str = "ce"
    """train: what it is trained with, a loss term against labels, e.g. evidential."""
    seed: int = Field(0, ge=0)
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    """Length of the teacher's run; neither: as long as the student's (clip: 600 steps; tip_adapter: 20 epochs)."""
    num_labels: NumLabels = None
    """Labeled images that the teacher sees; null: all that validation leaves (or that dataset.split_file names)."""
    mix: MixConfig = Field(default_factory=MixConfig)
    """Mixed images in the teacher's own training; `views.mix` is for the student's."""
    schedule: ScheduleConfig | None = None
    """train, tip_adapter: the recipe of its own run; null: the student's, or that of Tip-Adapter-F."""
    temperature: float = Field(1.0, gt=0)
    """What the frozen teacher's logits are divided by wherever it is asked: above 1 it is less confident, below 1 more,
    as accurate as before. Its own training knows nothing of it; a loss term's temperature comes on top."""
    cache: CacheConfig = Field(default_factory=CacheConfig)

    @model_validator(mode="before")
    @classmethod
    def local_dir(cls, node: Any) -> Any:
        """`pretrained: local-dir:<folder>`, as open_clip writes it, is a path."""
        given = node.get("pretrained") if isinstance(node, Mapping) else None
        if not isinstance(given, str) or not given.startswith("local-dir:"):
            return node
        return {**node, "pretrained": None, "path": given.removeprefix("local-dir:")}

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.source == "open_clip":
            if self.path is None and (self.model is None or self.pretrained is None):
                raise ValueError(
                    "open_clip needs teacher.model.name and teacher.pretrained (a published tag), or teacher.path"
                )
        elif self.source not in ("none", "ensemble", "tip_adapter") and self.model is None:
            raise ValueError("teacher.model is missing")
        for template in self.prompts if isinstance(self.prompts, list) else []:
            if template.count("{}") != 1:
                raise ValueError(f"teacher.prompts: {template!r} must hold {{}} once, where the class name goes")
        if self.prompts == []:
            raise ValueError("teacher.prompts: no template; give one, or null")
        if self.source == "ensemble" and len(self.members) < 2:
            raise ValueError(f"an ensemble needs two teacher.members or more, got {len(self.members)}")
        if self.source == "tip_adapter":
            self._adapts_one_clip()
        elif self.source != "ensemble" and self.members:
            raise ValueError("teacher.members are for source=ensemble, or for the one CLIP of source=tip_adapter")
        if self.source == "file" and self.path is None:
            raise ValueError("teacher.path is missing: the file with the teacher's weights")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give teacher.steps or teacher.epochs, not both")
        if any(member.cache.mode != "off" for member in self.members):
            raise ValueError("teacher.members.*.cache: the ensemble is kept as one; set teacher.cache instead")
        if self.mix.mixes and self.source != "train":
            raise ValueError("teacher.mix is for source=train")
        if self.schedule is not None and self.source not in ("train", "tip_adapter"):
            raise ValueError("teacher.schedule is for source=train and source=tip_adapter")
        if self.schedule is not None and (self.steps, self.epochs) != (None, None):
            raise ValueError("teacher.schedule has a length of its own; leave teacher.steps and teacher.epochs null")
        if any(model.new_head for model in self.models):
            raise ValueError("teacher.model.new_head: a frozen teacher would have a random classifier; set it to false")
        if self.source == "timm" and self.model is not None and self.model.head != "linear":
            raise ValueError("teacher.model.head: timm's published weights are of a linear head; set it to linear")
        if self.source == "open_clip" and self.model is not None and self.model.head != "linear":
            raise ValueError("teacher.model.head: a CLIP has none; leave it linear")
        return self

    def _adapts_one_clip(self) -> None:
        if len(self.members) != 1:
            raise ValueError(f"a tip_adapter stands on one CLIP in teacher.members, got {len(self.members)}")
        if self.members[0].source not in ("open_clip", "clip"):
            raise ValueError(
                f"teacher.members.0.source: a tip_adapter stands on a CLIP, got {self.members[0].source}; choose "
                "open_clip or clip"
            )
        own = [name for name in ("model", "path", "pretrained", "prompts", "zeta") if getattr(self, name) is not None]
        if own:
            raise ValueError(f"teacher.{own[0]}: of a tip_adapter it belongs into teacher.members.0.{own[0]}")
        if self.num_labels is not None:
            raise ValueError("teacher.num_labels: a tip_adapter sees the labels of the student; leave it null")

    @property
    def all(self) -> "list[TeacherConfig]":
        """This teacher and those that it is made of."""
        return [self, *(part for member in self.members for part in member.all)]

    @property
    def models(self) -> list[ModelConfig]:
        """All networks of timm in this teacher."""
        if self.members:
            return [model for member in self.members for model in member.models]
        return [] if self.model is None or self.source == "open_clip" else [self.model]

    @property
    def reads_names(self) -> bool:
        """Whether it depends on the names of the classes."""
        return any(part.source in ("open_clip", "clip") for part in self.all)
