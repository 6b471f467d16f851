"""The configuration of one network."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdrun.config.weights import WeightsConfig, averaged
from kdrun.core.schema import FileContent, Schema

# Arguments of timm.create_model that follow from the dataset or have a key of their own, and what kdrun cannot train.
OWN_ARGS = {"num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
OWN_ARGS |= {"cache_dir", "features_only", "scriptable", "exportable", "no_jit"}


class HeadWarmupConfig(Schema):
    """A supervised run of the head alone, from whose weights a student starts; as in the code of arXiv 2606.12171."""

    epochs: float = Field(10.0, gt=0)
    lr: float = Field(1e-3, gt=0)
    optimizer: str = "adam"


class ModelConfig(WeightsConfig):
    """One network: any name that timm knows, CIFAR networks of kdrun and of plugins included."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    """Passed on to timm.create_model."""
    pretrained: bool = False
    """Published weights of timm, from the hub, its cache, or `file`."""
    file: Annotated[str | None, FileContent(whole=True)] = None
    """A local file with the published weights, or others that fit (with pretrained=true), read as entry, drop,
    strip_prefix, rename and match say; of open_clip also a folder as it saves it."""
    new_head: bool = False
    """Published weights without their classifier, which starts anew; so where the classes are others in any case."""
    zero_head: bool = False
    """The classifier begins at zero instead of at random: at first all classes are equally likely, and what reaches
    published weights is no noise. timm's EfficientNets else begin with weights up to 1/sqrt(classes)."""
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None
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


def with_entry(model: ModelConfig) -> ModelConfig:
    """With the entry of its file that is taken, where that was once another."""
    if model.file is None or not model.pretrained or model.entry is not None:
        return model
    known = () if model.name == "open_clip" else ("state_dict_ema", "model_ema")
    return model.replace(entry=averaged(model.file, known))
