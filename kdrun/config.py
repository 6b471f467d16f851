"""The typed configuration of one run, the checks across its groups, and the key that names its directory.

Hydra composes plain nodes; `to_config` turns them into a `RunConfig`. The run key is the hash of every field that can
change a result, so that equal runs are found and never run twice.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from kdrun.errors import ConfigError, allowed
from kdrun.files import read_npz
from kdrun.prompts import templates
from kdrun.registry import load_plugins, lookup, plugin_hashes
from kdrun.schedule import RampConfig, ScheduleConfig
from kdrun.schema import FileContent, OutsideKey, S, Schema, build, marker

KEY_VERSION = 1  # raise it when a default changes its meaning: all keys change with it
HERE = Path(__file__).resolve().parent
CONF_DIR = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


# Arguments of timm.create_model that follow from the dataset or have a key of their own, and what kdrun cannot train.
OWN_ARGS = {"num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
OWN_ARGS |= {"cache_dir", "features_only", "scriptable", "exportable", "no_jit"}


class HeadWarmupConfig(Schema):
    """A supervised run of the head alone, from whose weights a student starts; as in the code of arXiv 2606.12171."""

    epochs: float = Field(10.0, gt=0)
    lr: float = Field(1e-3, gt=0)
    optimizer: str = "adam"


def _num_labels(given: Any) -> Any:
    if isinstance(given, str) and not re.fullmatch(r"0*[1-9]\d*/class|(?=.*[1-9])\d+(\.\d+)?%", given):
        raise ValueError(f"{given!r} is no number of labels; give e.g. 160, 16/class or 1%")
    if isinstance(given, int) and given <= 0:
        raise ValueError(f"{given} is no number of labels; give e.g. 160, 16/class or 1%")
    return given


NumLabels = Annotated[int | str | None, BeforeValidator(_num_labels)]
"""How many labels: in all, of each class (`16/class`), or of the training images (`1%`, rounded down)."""


class ModelConfig(Schema):
    """One network: any name that timm knows, CIFAR networks of kdrun and of plugins included."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    """Passed on to timm.create_model."""
    pretrained: bool = False
    """Published weights of timm, from the hub, its cache, or `file`."""
    file: Annotated[str | None, FileContent(whole=True)] = None
    """A local file with the published weights (with pretrained=true); of open_clip also a folder as it saves it."""
    new_head: bool = False
    """Published weights without their classifier, which starts anew; so where the classes are others in any case."""
    mean: list[float] | None = None
    """Normalisation of this network's input; null: the weights' own where pretrained, else the dataset's."""
    std: list[Annotated[float, Field(gt=0)]] | None = None
    size: int | None = Field(None, gt=0)
    """Images are resized to this side before the network; null: as they come."""
    lr_scale: float = Field(1.0, gt=0)
    """Factor on the schedule's learning rate for this network."""
    head: Literal["linear", "mlp", "hidden"] = "linear"
    """mlp: Dense(256, no bias), batch normalisation, ReLU, dropout 0.3, Dense(classes), as in arXiv 2606.12171; hidden:
    one hidden layer as wide as the features, ReLU, the same as method.kd_head=mlp of DHO."""
    trainable: Literal["all", "head"] = "all"
    """head: the rest stays as it is, and runs in training as in evaluation (batch statistics, dropout)."""
    head_warmup: HeadWarmupConfig | None = None
    """The head is trained on labels first, in a run of its own; null: it is not."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if taken := sorted(OWN_ARGS & set(self.args)):
            raise ValueError(f"args.{taken[0]}: kdrun gives this one itself; leave it out")
        return self


class MixConfig(Schema):
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899) within a batch."""

    kind: Literal["none", "mixup", "cutmix"] = "none"
    alpha: float = Field(1.0, gt=0)
    """lambda ~ Beta(alpha, alpha); 1: uniform in [0, 1]."""
    per: Literal["sample", "batch"] = "sample"
    """What lambda (and CutMix's box) is drawn for."""
    share: float = Field(1.0, ge=0, le=1)
    """Probability with which an image is mixed."""

    @property
    def mixes(self) -> bool:
        return self.kind != "none" and self.share > 0

    def effective(self) -> "MixConfig":
        """Without what has no effect."""
        return self if self.mixes else MixConfig(kind=self.kind, share=1.0 if self.kind == "none" else 0.0)


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
    """CLIPs: templates with {} for the class name, or the name of a set of kdrun/prompts.py; null: the dataset's
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


class DatasetConfig(Schema):
    """What all datasets have in common; a dataset's own `Config` adds its keys."""

    name: str
    num_labels: NumLabels = None
    """Size of the labeled set, balanced over the classes, or `16/class`, or `1%`; null: the whole training part."""
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the training images kept for validation, stratified."""
    val_seed: int = Field(0, ge=0)
    split_seed: int | None = Field(None, ge=0)
    """Seed of the labeled draw; null: the run's seed, so that a spread over seeds contains the draw."""
    upstream: float = Field(0.0, ge=0, lt=1)
    """Share of the training images that validation leaves, stratified, which is set apart for a teacher of source=clip;
    runs on the downstream part see none of them."""
    part: Literal["downstream", "upstream"] = "downstream"
    """Which of the two parts this run sees."""
    split_file: Annotated[str | None, FileContent()] = None
    """An .npz file with index arrays labeled (and unlabeled, val), instead of a draw."""
    unlabeled: Annotated[str | None, FileContent()] = None
    """Another unlabeled pool than the training images: a folder of images, or an .npz with an array `images`."""
    class_names: list[str] | None = Field(None, min_length=2)
    """Names of the classes for a teacher that reads them, in the order of the labels; or a text file with one a line;
    null: the dataset's own."""
    mirror: bool = True
    """Whether a mirrored image keeps its class (false for digits)."""
    mean: list[float] | None = None
    """Per channel, of pixels scaled to [0, 1]; null: the dataset's own."""
    std: list[Annotated[float, Field(gt=0)]] | None = None
    resident: Annotated[bool | Literal["auto"], OutsideKey()] = "auto"
    """Whether the images are kept on the training device, or fetched from the host's memory (packed ones: from their
    file, through the page cache) batch by batch; auto: on the device where they fit."""

    @field_validator("class_names", mode="before")
    @classmethod
    def listed(cls, given: Any) -> Any:
        """The lines of a file."""
        if not isinstance(given, str):
            return given
        try:
            return [line.strip() for line in Path(given).expanduser().read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise ValueError(f"{given}: not a readable text file with a name on each line ({error})") from None


class PackConfig(Schema):
    """Image files, decoded once to a file of pixels that all runs share (outputs/artifacts/packed)."""

    size: Annotated[int | None, Field(gt=0), OutsideKey()] = None
    """Side in pixels; null: not packed, but decoded into memory by each process, at `dataset.size`."""
    crop: Literal["center", "square"] = "center"
    """center: short side resized, center square kept; square: both sides resized. Packed or not."""


class FilesConfig(DatasetConfig):
    """What all datasets of image files have in common."""

    size: int = Field(224, gt=0)
    """Side in pixels. What is packed has `pack.size`; the run key knows the size, not where the pixels are kept."""
    pack: PackConfig = Field(default_factory=PackConfig)
    stream: bool = False
    """Neither packed nor held in memory: the files of each batch are decoded for it, by `execution.workers`. Crops at
    random scales are then cut out of the file's own pixels, else all is as if the files were packed."""
    skip_unreadable: bool = False
    """Go on without files that cannot be decoded; the record says how many."""
    coop_split: Annotated[str | None, FileContent()] = None
    """A split_zhou_<Dataset>.json of CoOp (Zhou et al. 2022, arXiv 2109.01134): its train, val and test images."""
    val: Literal["drawn", "official"] = "drawn"
    """drawn: `val_fraction` of the training images, official validation images among them; official: those alone."""

    @property
    def pixels(self) -> int:
        """Side in pixels, packed or not."""
        return self.pack.size or self.size

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.stream and self.skip_unreadable:
            raise ValueError(
                "skip_unreadable: which files are unreadable is not known before they are streamed; set it or stream "
                "to false"
            )
        return self


class WeakConfig(Schema):
    """Weak views: random crop after padding, or at a random scale; random mirroring (only if `dataset.mirror`)."""

    pad: int | None = Field(None, ge=0)
    """Pixels on each side; null: an eighth of the image side (4 at 32 px)."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = True
    scale: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(None, min_length=2, max_length=2)
    """Least and greatest share of the area that a crop shows (RandomResizedCrop); null: crops after padding."""
    ratio: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: [3 / 4, 4 / 3], min_length=2, max_length=2
    )
    """Least and greatest ratio of width and height of a crop at a random scale."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How a crop at a random scale, and what evaluation shows, is resized; antialiased."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        for name, pair in (("scale", self.scale), ("ratio", self.ratio)):
            if pair is not None and pair[0] > pair[1]:
                raise ValueError(f"{name}: the least comes first, got {pair}")
        return self


class StrongConfig(Schema):
    """Strong views: a weak view of their own, then random operations (RandAugment) and a cutout."""

    num_ops: int = Field(2, ge=0)
    """Operations on each image, drawn with replacement from the 14."""
    p_op: float = Field(0.5, ge=0, le=1)
    """Probability that a drawn operation is applied."""
    levels: Literal["official", "kekmodel", "usb"] = "official"
    """Whose ranges of the operations: google-research/fixmatch, kekmodel/FixMatch-pytorch or USB."""
    cutout: float | None = Field(None, ge=0)
    """Side of the filled square in pixels; below 1: drawn up to that share of the width; null: half the image side."""
    fill: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=lambda: [127], min_length=1, max_length=3)
    """Gray value or color of the cutout."""


class ViewsConfig(Schema):
    weak: WeakConfig = Field(default_factory=WeakConfig)
    size: int | None = Field(None, gt=0)
    """Side of the views in pixels, with weak.scale; null: the short side of the images."""
    eval_ratio: float = Field(1.0, gt=0, le=1)
    """Share of the short side that evaluation shows: a center square, at the size of the views; with weak.scale."""
    strong: StrongConfig = Field(default_factory=StrongConfig)
    mix: MixConfig = Field(default_factory=MixConfig)
    """What is mixed in training; the teacher sees the same mixed images."""
    mean: list[float] | None = Field(None, min_length=1, max_length=3)
    """What a recipe normalises with, for all channels or for each; null: the dataset's own. `dataset.mean` wins."""
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1, max_length=3)


class MethodConfig(Schema):
    name: str


class UncertaintyConfig(Schema):
    name: str


class TermConfig(Schema):
    """What all loss terms have in common."""

    name: str
    weight: float = Field(1.0, ge=0)
    """Factor on the term's mean; 0: the term is not built."""


class TrackerConfig(Schema):
    """Mirror of the curves; the record on disk stays the source of truth."""

    name: Literal["none", "wandb"] = "none"
    project: str = "kdrun"
    entity: str | None = None
    tags: list[str] = Field(default_factory=list)
    mode: Literal["online", "offline"] | None = None
    """null: online where a key is configured, else offline (WANDB_MODE counts)."""


class EvaluateConfig(Schema):
    """What else is measured once a run is done. It changes no result, so a finished run can be measured later."""

    corruptions: str | None = Field(None, min_length=1)
    """A folder as CIFAR-10-C or CIFAR-100-C, of the dataset's test images; null: none."""
    sets: list[Literal["imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"]] = Field(default_factory=list)
    """Other test sets, of networks that were trained on ImageNet or on some of its classes."""
    root: str = Field("data", min_length=1)
    """What holds the folders of `sets`, called as their authors' archives."""


class ExecutionConfig(Schema):
    """How and where a run is carried out; nothing here can change its result beyond rounding."""

    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, cuda:<n> or mps."""
    threads: int | None = Field(None, gt=0)
    """Threads of torch on the CPU; null: torch's choice."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that decode streamed images ahead of the training; 0: none, the run does it itself; auto: a core each
    but one, at most 16."""
    outputs: str = Field("outputs", min_length=1)
    progress: bool | None = None
    """Progress bar; null: only on a terminal."""
    eval_batch_size: int = Field(1000, gt=0)
    log_every_steps: int = Field(50, gt=0)
    checkpoint_every_seconds: float = Field(300, gt=0)
    checkpoint_every_steps: int | None = Field(None, gt=0)
    keep_checkpoint: bool = False
    """Keep the last checkpoint of a finished run."""

    @field_validator("device")
    @classmethod
    def is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError(f"{value!r} is not a device; allowed: auto, cpu, cuda, cuda:<n>, mps")
        return value


class RunConfig(Schema):
    """One run, wholly specified."""

    method: SerializeAsAny[MethodConfig]
    dataset: SerializeAsAny[DatasetConfig]
    views: ViewsConfig
    teacher: TeacherConfig
    students: list[ModelConfig]
    losses: dict[str, SerializeAsAny[TermConfig]]
    schedule: ScheduleConfig
    seed: int = Field(0, ge=0)
    tracker: Annotated[TrackerConfig, OutsideKey()]
    execution: Annotated[ExecutionConfig, OutsideKey()]
    evaluate: Annotated[EvaluateConfig, OutsideKey()] = Field(default_factory=EvaluateConfig)
    plugins: Annotated[list[str], OutsideKey()] = Field(default_factory=list)
    ramps: dict[str, RampConfig] = Field(default_factory=dict)
    """Weights that move during training."""

    @property
    def weights(self) -> dict[str, float]:
        """All weights above 0 by key: `loss.<term>.weight`, and `method.<name>_weight` of what the method adds."""
        out = {f"loss.{label}.weight": term.weight for label, term in self.losses.items()}
        own = {name: getattr(self.method, name) for name in type(self.method).model_fields if name.endswith("_weight")}
        out |= {f"method.{name}": value for name, value in own.items() if isinstance(value, float)}
        return {key: value for key, value in out.items() if value > 0}

    @property
    def method_class(self) -> Any:
        """The registered method class."""
        return lookup("method", self.method.name, "method.name")

    @property
    def sides(self) -> set[str]:
        """What the loss terms work against: target, teacher."""
        terms = self.losses.items()
        return {lookup("loss", term.name, f"loss.{label}.name").works_against(term) for label, term in terms}

    @property
    def needs_teacher(self) -> bool:
        """Whether the method or one of the loss terms asks a teacher."""
        return bool(self.method_class.always_teacher or "teacher" in self.sides)

    @property
    def split_seed(self) -> int:
        """Seed of the labeled draw."""
        return self.seed if self.dataset.split_seed is None else self.dataset.split_seed

    @property
    def directory(self) -> Path:
        """Content-named directory of the run."""
        return Path(self.execution.outputs).expanduser() / run_dir(self)


# ---------------------------------------------------------------------------------------------------- from Hydra


def to_config(composed: DictConfig) -> RunConfig:
    """Type and check a composed Hydra config. Raises ConfigError with one line for each problem."""
    try:
        if not OmegaConf.is_dict(composed.get("execution")):
            raise ConfigError("execution: missing; it must be the mapping of conf/config.yaml")
        ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        node = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise ConfigError(f"{key}: {_first_line(error)}") from None
    if not isinstance(node, dict):
        raise ConfigError("config: not a mapping")
    return from_nodes({str(k): v for k, v in node.items()})


def from_nodes(node: dict[str, Any]) -> RunConfig:
    """Type and check plain nodes, as Hydra composes them (`loss`, `student`) or as config.yaml records them."""
    known = {"method", "dataset", "views", "teacher", "student", "students", "loss", "schedule", "seed"}
    known |= {"tracker", "execution", "evaluate", "plugins", "coefficients", "settings", "experiment", "ramps"}
    errors = [f"{key}: unknown key; {allowed(key, known)}" for key in node if key not in known]
    absent = [key for key in ("method", "dataset", "schedule") if not node.get(key)]
    absent += ["loss"] if node.get("loss") is None else []  # a method that trains nothing has no terms
    errors += [f"{key}: missing; choose one" for key in absent]
    if errors:
        raise ConfigError(*errors)
    plugins = node.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(p, str) for p in plugins):
        raise ConfigError(f"plugins: expected a list of Python files, got {plugins!r}")
    load_plugins(plugins)

    parts: dict[str, Any] = {"plugins": plugins, "seed": node.get("seed", 0)}

    def collect(name: str, make: Any) -> None:
        try:
            parts[name] = make()
        except ConfigError as error:
            errors.extend(error.lines)

    collect("method", lambda: plugged("method", node["method"], "method"))
    collect("dataset", lambda: plugged("dataset", node["dataset"], "dataset"))
    collect("losses", lambda: _losses(node["loss"]))
    collect("students", lambda: _students(node))
    collect("ramps", lambda: _ramps(node.get("ramps") or {}))
    collect("schedule", lambda: build(ScheduleConfig, _decay(node["schedule"], "schedule"), "schedule"))
    collect("teacher", lambda: build(TeacherConfig, _teacher(node.get("teacher") or {}, "teacher"), "teacher"))
    for name, schema in (
        ("views", ViewsConfig),
        ("tracker", TrackerConfig),
        ("execution", ExecutionConfig),
        ("evaluate", EvaluateConfig),
    ):
        collect(name, lambda name=name, schema=schema: build(schema, node.get(name) or {}, name))
    if errors:
        raise ConfigError(*errors)
    config = build(RunConfig, parts, "")
    check_coefficients(node.get("coefficients") or {})
    check_settings(node.get("settings") or {})
    return effective(config)


def plugged(kind: str, node: Any, key: str) -> Any:
    """The typed configuration of a part that plugs in."""
    if not isinstance(node, Mapping) or "name" not in node:
        raise ConfigError(f"{key}: expected a mapping with a name, got {node!r}; choose a file of conf/{kind}")
    return build(lookup(kind, node["name"], f"{key}.name").Config, node, key)


def _losses(node: Any) -> dict[str, TermConfig]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"loss: expected a mapping of terms, got {node!r}")
    errors: list[str] = []
    terms: dict[str, TermConfig] = {}
    for label, term in node.items():
        try:
            terms[str(label)] = plugged("loss", term, f"loss.{label}")
        except ConfigError as error:
            errors += error.lines
    if errors:
        raise ConfigError(*errors)
    return terms


def _decay(schedule: Any, key: str) -> Any:
    """A schedule's node with its decay typed."""
    if not isinstance(schedule, Mapping) or not schedule.get("decay"):
        return schedule
    return {**schedule, "decay": plugged("decay", schedule["decay"], f"{key}.decay")}


def _teacher(node: Any, key: str) -> Any:
    """A teacher's node, and those of its members, with the decay of its own schedule typed."""
    if not isinstance(node, Mapping):
        return node
    out = {**node, "schedule": _decay(node.get("schedule"), f"{key}.schedule")}
    if isinstance(node.get("model"), str):
        out["model"] = _named_network(node["model"])
    if isinstance(node.get("members"), list):
        out["members"] = [_teacher(member, f"{key}.members.{i}") for i, member in enumerate(node["members"])]
    return out


def _ramps(node: Any) -> dict[str, RampConfig]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"ramps: expected a mapping such as {{alpha: {{key: loss.ce.weight, end: 0}}}}, got {node!r}")
    return {str(name): build(RampConfig, ramp, f"ramps.{name}") for name, ramp in node.items()}


def _students(node: dict[str, Any]) -> list[ModelConfig]:
    given = node.get("students") or [node.get("student")]
    if node.get("students") == [] and "student" not in node:
        given = []  # the record of a method that has none
    if not isinstance(given, list):
        raise ConfigError(f"students: expected a list of names or mappings, got {given!r}")
    out = []
    for i, item in enumerate(given):
        key = "student" if not node.get("students") else f"students.{i}"
        out.append(build(ModelConfig, _named_network(item) if isinstance(item, str) else item, key))
    return out


def _named_network(name: str) -> dict[str, Any]:
    """The content of conf/student/<name>.yaml, else any timm name."""
    path = CONF_DIR / "student" / f"{name}.yaml"
    node: dict[str, Any] = yaml.safe_load(path.read_text()) if path.is_file() else {"name": name}
    return {key: value for key, value in node.items() if key != "defaults"}


def check_coefficients(coefficients: Any) -> None:
    """Each key of `coefficients` must name a field of a registered loss term."""
    if not isinstance(coefficients, Mapping):
        raise ConfigError(f"coefficients: expected a mapping of sets of terms, got {coefficients!r}")
    errors = []
    for terms, values in coefficients.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"coefficients.{terms}: expected a mapping such as {{wttm.gamma: 0.3}}, got {values!r}")
        for name in str(terms).split("+"):
            lookup("loss", name, f"coefficients.{terms}")
        for dotted in values:
            name, _, field = str(dotted).partition(".")
            fields = lookup("loss", name, f"coefficients.{terms}.{dotted}").Config.model_fields
            if field not in fields:
                errors.append(f"coefficients.{terms}.{dotted}: {name} has no {field!r}; {allowed(field, fields)}")
    if errors:
        raise ConfigError(*errors)


def check_settings(settings: Any) -> None:
    """Each key of `settings` must be one that conf/method/<name>.yaml reads there."""
    if not isinstance(settings, Mapping) or not all(isinstance(values, Mapping) for values in settings.values()):
        raise ConfigError(f"settings: expected a mapping such as {{dho: {{ce_share: 0.5}}}}, got {settings!r}")
    for method, values in settings.items():
        lookup("method", method, f"settings.{method}")
        path = CONF_DIR / "method" / f"{method}.yaml"
        read = re.findall(rf"\$\{{setting:{method}\.(\w+),", path.read_text()) if path.is_file() else []
        for key in values:
            if key not in read:
                where = f"conf/method/{method}.yaml"
                raise ConfigError(f"settings.{method}.{key}: {where} does not read it; {allowed(key, read)}")


def effective(config: RunConfig) -> RunConfig:
    """Drop what cannot have an effect, and refuse combinations that cannot run."""
    losses = {label: term for label, term in sorted(config.losses.items()) if term.weight > 0}
    if not losses and config.method_class.trains:
        raise ConfigError("loss: no term with a weight above 0; give one of them a weight")
    config = config.replace(losses=losses)
    if config.method_class.num_students == (0, 0):
        config = config.replace(students=[])
    if not config.method_class.trains:
        config = _without_training(config)
    from kdrun.contradictions import contradictions

    if errors := contradictions(config):
        raise ConfigError(*errors)
    config = config.replace(
        teacher=_effective_teacher(config) if config.needs_teacher else TeacherConfig(),
        views=config.views.replace(mix=config.views.mix.effective()),
    )
    present = {model.name for model in (*config.students, *config.teacher.models)}
    lr_for = {name: lr for name, lr in config.schedule.lr_for.items() if name in present}
    config = config.replace(schedule=config.schedule.replace(lr_for=lr_for))
    weak = config.views.weak
    unused = ("ratio", "interpolation") if weak.scale is None else ("pad", "pad_mode")
    kept = {name: value for name, value in weak if name not in unused}
    config = config.replace(views=config.views.replace(weak=WeakConfig(**kept)))
    if not config.dataset.mirror:
        config = config.replace(views=config.views.replace(weak=config.views.weak.replace(flip=True)))  # no effect
    if not any("strong" in views for views in config.method_class.streams.values()):
        config = config.replace(views=config.views.replace(strong=StrongConfig()))
    dataset = config.dataset
    if "unlabeled" not in config.method_class.streams:
        dataset = dataset.replace(unlabeled=None)
    if dataset.split_file is not None and dataset.num_labels is None:
        dataset = dataset.replace(num_labels=_num_listed(dataset.split_file))
    named = any(model.name == "open_clip" for model in config.students)  # its text encoder may be asked
    if not (named or config.teacher.reads_names or config.method_class.reads_names):
        dataset = dataset.replace(class_names=None)
    if (dataset.num_labels is None or dataset.split_file is not None) and dataset.split_seed is not None:
        dataset = dataset.replace(split_seed=None)  # nothing is drawn
    if isinstance(dataset, FilesConfig):
        dataset = dataset.replace(size=dataset.pixels)
        if dataset.val == "official":
            dataset = dataset.replace(
                **{n: type(dataset).model_fields[n].default for n in ("val_fraction", "val_seed")}
            )
    return config.replace(dataset=dataset)


def _without_training(config: RunConfig) -> RunConfig:
    """Of a run that evaluates its teacher alone: the same for all seeds, labels and recipes that the teacher shares."""
    dataset, schedule, seed, parts = config.dataset, config.schedule, config.seed, config.teacher.all
    if not any(part.source == "tip_adapter" or part.num_labels is not None for part in parts):
        seed = 0
        if dataset.split_file is None:
            dataset = dataset.replace(num_labels=None, split_seed=None)
    if not any(part.source == "train" and part.schedule is None for part in parts):
        schedule = ScheduleConfig(steps=1, precision=schedule.precision, channels_last=schedule.channels_last)
    return config.replace(
        losses={}, ramps={}, seed=seed, dataset=dataset, schedule=schedule,
        views=config.views.replace(mix=MixConfig()), teacher=config.teacher.replace(cache=CacheConfig()),
    )  # fmt: skip


def _effective_teacher(config: RunConfig, teacher: TeacherConfig | None = None) -> TeacherConfig:
    teacher = config.teacher if teacher is None else teacher
    if teacher.source not in ("train", "clip") and teacher.model is not None:  # it is not trained
        teacher = teacher.replace(model=teacher.model.replace(trainable="all", head_warmup=None))
    members = [_effective_teacher(config, member) for member in teacher.members]
    prompts = None
    if teacher.source in ("open_clip", "clip"):  # written out: another default some day is another run
        prompts = templates(teacher.prompts, config.dataset.name)
    return teacher.replace(
        mix=teacher.mix.effective(), members=members, prompts=prompts, cache=teacher.cache.effective(),
        adapter=teacher.adapter if teacher.source == "tip_adapter" else AdapterConfig(),
    )  # fmt: skip


def ramps_in(config: RunConfig) -> dict[str, RampConfig]:
    """The ramps whose weight `config` has; of a run that is made from another one."""
    return {name: ramp for name, ramp in config.ramps.items() if ramp.key in config.weights}


def _num_listed(split_file: str) -> int | None:
    return _num_in(split_file, file_hash(split_file, "dataset.split_file"))


@lru_cache(maxsize=256)
def _num_in(split_file: str, _content: str) -> int | None:
    labeled = read_npz(Path(split_file), "dataset.split_file").get("labeled")
    return None if labeled is None else labeled.size  # what is wrong with it is said when the split is made


# ------------------------------------------------------------------------------------------------------- the key


def run_key(config: RunConfig) -> str:
    """12 hex digits that name this run: equal for equal results, whatever the paths, device or tracker.

    Fields equal to their default are left out, so a field added later changes no key where it keeps the old behavior.
    """
    content = _content(config)
    adaptive = config.schedule.decay.name == "plateau" or any(r.kind == "adaptive" for r in config.ramps.values())
    if not adaptive and not config.method_class.evaluations_matter(config):
        # evaluations only look on
        for cadence in ("eval_every_steps", "eval_every_epochs"):
            content["schedule"].pop(cadence, None)
    if config.dataset.split_seed == config.seed:  # the same draw as null
        content["dataset"].pop("split_seed", None)
    if config.views.weak.scale is None:  # the same pixels, streamed or not
        content["dataset"].pop("stream", None)
    plugins = plugin_hashes(plugged_classes(config)) if config.plugins else []
    text = json.dumps({"version": KEY_VERSION, "config": content, "plugins": plugins}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_dir(config: RunConfig) -> str:
    """`runs/<method>/<dataset>/n<labels>/s<seed>-<key>`, below `execution.outputs`."""
    labels = str(config.dataset.num_labels or "all").replace("/", "-per-").replace("%", "pct")
    return f"runs/{config.method.name}/{config.dataset.name}/n{labels}/s{config.seed}-{run_key(config)}"


def _content(value: Any, key: str = "") -> Any:
    if isinstance(value, Schema):
        out = {}
        for name, field in type(value).model_fields.items():
            item, where = getattr(value, name), f"{key}.{name}".lstrip(".")
            if marker(field, OutsideKey) or (
                not field.is_required() and item == field.get_default(call_default_factory=True)
            ):
                continue
            file = marker(field, FileContent)
            content = content_hash(item, where, file) if file else _content(item, where)
            # a node may differ from its default in nothing that counts
            if content != {} or field.is_required() or not isinstance(item, Schema):
                out[name] = content
        return out
    if isinstance(value, Mapping):
        return {str(k): _content(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_content(v, f"{key}.{i}") for i, v in enumerate(value)]
    return value


def content_hash(path: str, key: str, file: FileContent) -> str:
    """What stands in the run key for a field that is marked so."""
    if file.or_name and not os.path.exists(os.path.expanduser(path)):
        return path
    return file_hash(path, key, file.whole)


def file_hash(path: str, key: str, whole: bool = False) -> str:
    """sha256 of a file's content, remembered while its size and time stay; `key` is blamed when it is absent.

    Of a folder: of the names and sizes of all files in it, with `whole` of the names and contents. A file that was
    there in the check and is gone when its run begins keeps its hash: the run keeps its directory, and reading the file
    says what is wrong.
    """
    try:
        place = Path(path).expanduser()
        stat = place.stat()
        if whole and place.is_dir():
            files = sorted(_files_in(place, ()))
            listing = "".join(f"{p.relative_to(place).as_posix()}\0{file_hash(str(p), key)}\n" for p in files)
            _LAST[path] = hashlib.sha256(os.fsencode(listing)).hexdigest()
        else:
            _LAST[path] = _file_hash(str(place), stat.st_size, stat.st_mtime_ns)
    except RuntimeError:
        raise ConfigError(f"{key}: {path}: no such home directory; write the path out") from None
    except OSError as error:
        if path not in _LAST:
            raise ConfigError(f"{key}: {path}: cannot be read ({error.strerror})") from None
    return _LAST[path]


_LAST: dict[str, str] = {}


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    if Path(path).is_dir():
        files = sorted(_files_in(Path(path), ()))
        listing = "".join(f"{p.relative_to(path).as_posix()}\0{p.stat().st_size}\n" for p in files)
        return hashlib.sha256(os.fsencode(listing)).hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_in(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files at any depth, through links too, but not round a loop."""
    real = folder.resolve()
    for entry in folder.iterdir():
        if entry.is_dir():
            if real not in above:
                yield from _files_in(entry, (*above, real))
        elif entry.is_file():
            yield entry


def plugged_classes(config: RunConfig) -> list[Any]:
    """Every registered class or function that this run is made of."""
    import timm

    models = [*config.students, *config.teacher.models]
    return [
        config.method_class,
        lookup("dataset", config.dataset.name, "dataset.name"),
        *(
            lookup("decay", s.decay.name, "schedule.decay.name")
            for s in (config.schedule, config.teacher.schedule)
            if s
        ),
        *(lookup("loss", term.name, "loss") for term in config.losses.values()),
        *(timm.model_entrypoint(model.name) for model in models),
        *(
            lookup("uncertainty", part.name, "method")
            for _, part in config.method
            if isinstance(part, UncertaintyConfig)
        ),
    ]


def dump(config: RunConfig) -> dict[str, Any]:
    """Plain nodes of a config, readable by `from_nodes`."""
    node = config.model_dump(mode="json")
    node["loss"] = node.pop("losses")
    return node


def read_conf(kind: str, name: str, cls: type[S]) -> S:
    """conf/<kind>/<name>.yaml, which stands beside the composed groups (tables, papers).

    Raises:
        ConfigError: there is no such file, or one line for each mistake in it.
    """
    path = CONF_DIR / kind / f"{name}.yaml"
    if not path.is_file():
        names = (p.stem for p in path.parent.glob("*.yaml"))
        raise ConfigError(f"{kind}={name}: no such {kind}; {allowed(name, names)}")
    return build(cls, yaml.safe_load(path.read_text()), f"{kind} {name}")


# --------------------------------------------------------------------------------------------------- resolvers


def _plain_weight(losses: Any, label: Any) -> Any:
    node = losses[label]
    return OmegaConf.to_container(node).get("weight") if OmegaConf.is_dict(node) else None  # type: ignore[union-attr]


def set_of_terms(root: DictConfig) -> str:
    """The key in `coefficients` of the terms in use: `crd+wttm` for ce, wttm and crd."""
    losses: Any = OmegaConf.select(root, "loss") or OmegaConf.create({})
    built = [label for label in losses if _plain_weight(losses, label) != 0]
    names = [OmegaConf.select(losses, f"{label!s}.name") for label in built]
    return "+".join(sorted(str(name) for name in names if name and name != "ce"))


def _coefficient(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """`${coefficient:wttm.weight,4.0}`: what `coefficients` gives for the set of terms in use, or the default."""
    table = OmegaConf.select(_root_, "coefficients") or {}
    chosen = table.get(set_of_terms(_root_)) if isinstance(table, Mapping) else None
    return chosen.get(key, default) if isinstance(chosen, Mapping) else default


def _setting(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """`${setting:dho.ce_share,0.4}`: what `settings` gives for a method, or the default."""
    given = OmegaConf.select(_root_, f"settings.{key}")
    return default if given is None else given


def _run_dir(*, _root_: DictConfig) -> str:
    return run_dir(to_config(_root_))


def register_resolvers() -> None:
    """Register the resolvers that conf/ uses (needed once in a process)."""
    OmegaConf.register_new_resolver("coefficient", _coefficient, replace=True)
    OmegaConf.register_new_resolver("setting", _setting, replace=True)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


register_resolvers()
