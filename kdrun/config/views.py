"""The configuration of views: weak, strong, mixed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrun.core.schema import Schema


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
    """Strong views: a weak view of their own, then random operations (RandAugment or CTAugment) and a cutout."""

    policy: Literal["randaugment", "ctaugment"] = "randaugment"
    """ctaugment: the network in training says how far its 19 operations may go, for methods of FixMatch's kind."""
    num_ops: int = Field(2, ge=0)
    """Operations on each image, drawn with replacement from the 14."""
    p_op: float = Field(0.5, ge=0, le=1)
    """Probability that a drawn operation is applied."""
    levels: Literal["official", "imagenet", "kekmodel", "usb"] = "official"
    """Whose operations and ranges: google-research/fixmatch (imagenet: of its part for ImageNet, with 16 operations),
    kekmodel/FixMatch-pytorch or USB."""
    cutout: float | None = Field(None, ge=0)
    """Side of the filled square in pixels; below 1: drawn up to that share of the width; null: half the image side."""
    fill: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=lambda: [127], min_length=1, max_length=3)
    """Gray value or color of the cutout."""
    rate_threshold: float = Field(0.8, ge=0, le=1)
    """Of ctaugment: magnitudes whose rate is below this share of the best are not drawn."""
    rate_decay: float = Field(0.99, ge=0, lt=1)
    """Of ctaugment: how much of a rate stays after each prediction on a labeled image of that magnitude."""

    @property
    def learns(self) -> bool:
        """Whether its magnitudes follow the network in training."""
        return self.policy == "ctaugment"

    def effective(self) -> "StrongConfig":
        """Without what has no effect."""
        unused = {"p_op", "levels"} if self.learns else {"rate_threshold", "rate_decay"}
        return StrongConfig(**{name: value for name, value in self if name not in unused})


class ViewsConfig(Schema):
    weak: WeakConfig = Field(default_factory=WeakConfig)
    size: int | None = Field(None, gt=0)
    """Side of the views in pixels, with weak.scale; null: the short side of the images."""
    eval_ratio: float = Field(1.0, gt=0, le=1)
    """Share of the short side that evaluation shows: a center square, at the size of the views; with weak.scale."""
    strong: StrongConfig = Field(default_factory=StrongConfig)
    mix: MixConfig = Field(default_factory=MixConfig)
    """What is mixed in training; the teacher sees the same mixed images."""
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(None, min_length=1, max_length=3)
    """What a recipe normalises with, for all channels or for each; null: the dataset's own. `dataset.mean` wins."""
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1, max_length=3)
