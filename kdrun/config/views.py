"""The configuration of views: weak, strong, mixed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrun.core.schema import Schema


class MixConfig(Schema):
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899) within a batch."""

    kind: Literal["none", "mixup", "cutmix", "mixup_or_cutmix"] = "none"
    """mixup_or_cutmix: by turns, as chance has it (DeiT: Touvron et al. 2021, arXiv 2012.12877)."""
    alpha: float = Field(1.0, gt=0)
    """lambda ~ Beta(alpha, alpha); 1: uniform in [0, 1]."""
    per: Literal["sample", "batch"] = "sample"
    """What lambda (CutMix's box, and which of the two) is drawn for."""
    share: float = Field(1.0, ge=0, le=1)
    """Probability with which an image is mixed."""
    cutmix_share: float = Field(0.5, ge=0, le=1)
    """Of mixup_or_cutmix: probability of CutMix where images are mixed."""
    cutmix_alpha: float = Field(1.0, gt=0)
    """Of mixup_or_cutmix: alpha of CutMix; `alpha` is mixup's."""

    @property
    def mixes(self) -> bool:
        return self.kind != "none" and self.share > 0

    @property
    def blends(self) -> bool:
        """Whether mixed pixels are float32 in [0, 1], and not uint8."""
        return self.kind in ("mixup", "mixup_or_cutmix")

    def effective(self) -> "MixConfig":
        """Without what has no effect."""
        if not self.mixes:
            return MixConfig(kind=self.kind, share=1.0 if self.kind == "none" else 0.0)
        if self.kind == "mixup_or_cutmix":
            return self
        return MixConfig(**{name: value for name, value in self if not name.startswith("cutmix_")})


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
    """Strong views: a weak view of their own, then random operations (RandAugment or CTAugment), cutout, erasing."""

    policy: Literal["randaugment", "ctaugment"] = "randaugment"
    """ctaugment: the network in training says how far its 19 operations may go, for methods of FixMatch's kind."""
    num_ops: int = Field(2, ge=0)
    """Operations on each image, drawn with replacement from the 14 (imagenet: 16, timm: 15)."""
    p_op: float = Field(0.5, ge=0, le=1)
    """Probability that a drawn operation is applied."""
    levels: Literal["official", "imagenet", "kekmodel", "usb", "timm"] = "official"
    """Whose operations and ranges: google-research/fixmatch (imagenet: of its part for ImageNet, with 16 operations),
    kekmodel/FixMatch-pytorch, USB, or timm's increasing set, whose geometry is bicubic (recipes of DeiT's kind)."""
    magnitude: float = Field(9.0, ge=0, le=10)
    """Of timm: how far its operations go, of 10."""
    magnitude_std: float = Field(0.5, ge=0)
    """Of timm: standard deviation of the magnitude, drawn for each operation."""
    cutout: float | None = Field(None, ge=0)
    """Side of the filled square in pixels; below 1: drawn up to that share of the width; null: half the image side."""
    fill: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=lambda: [127], min_length=1, max_length=3)
    """Gray value or color of the cutout; of timm also what comes in from outside of the image."""
    erase: float = Field(0.0, ge=0, le=1)
    """Probability of random erasing (Zhong et al. 2017, arXiv 1708.04896) behind all else: a box of 2 % to a third of
    the area becomes noise, of the mean and the deviation that pixels are normalised with."""
    rate_threshold: float = Field(0.8, ge=0, le=1)
    """Of ctaugment: magnitudes whose rate is below this share of the best are not drawn."""
    rate_decay: float = Field(0.99, ge=0, lt=1)
    """Of ctaugment: how much of a rate stays after each prediction on a labeled image of that magnitude."""

    @model_validator(mode="after")
    def one_policy(self) -> Self:
        if self.erase and self.learns:
            raise ValueError("erase: goes with policy=randaugment; set it to 0, or choose that policy")
        return self

    @property
    def learns(self) -> bool:
        """Whether its magnitudes follow the network in training."""
        return self.policy == "ctaugment"

    def effective(self) -> "StrongConfig":
        """Without what has no effect."""
        unused = {"p_op", "levels"} if self.learns else {"rate_threshold", "rate_decay"}
        if self.learns or self.levels != "timm":
            unused |= {"magnitude", "magnitude_std"}
        return StrongConfig(**{name: value for name, value in self if name not in unused})


class ViewsConfig(Schema):
    labeled: Literal["weak", "strong"] = "weak"
    """How images of the labeled stream are shown: what methods call their weak view is then made as a strong one."""
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
