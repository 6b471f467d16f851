"""What the teachers have in common that are a CLIP, which tells classes by their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.config.prompts import templates
from kdrun.config.run import RunConfig
from kdrun.config.teacher import TeacherConfig
from kdrun.core.device import full_precision
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.data.views.view import View
from kdrun.models.class_texts import class_words, text_features
from kdrun.models.factory import NetworkFactory
from kdrun.models.open_clip import Tokenizer
from kdrun.models.output import Output
from kdrun.teachers.kind import TeacherKind


class ZeroShotConfig(TeacherConfig):
    prompts: list[str] | str | None = None
    """Templates with {} for the class name, or the name of a dataset that has its own; null: the dataset's set,
    else "a photo of a {}."."""
    zeta: float | None = Field(None, gt=0)
    """Logits are cosines divided by it; null: the network's own, exp(-logit_scale), .01 of OpenAI's."""

    @model_validator(mode="after")
    def with_templates(self) -> Self:
        for template in self.prompts if isinstance(self.prompts, list) else []:
            if template.count("{}") != 1:
                raise ValueError(f"teacher.prompts: {template!r} must hold {{}} once, where the class name goes")
        if self.prompts == []:
            raise ValueError("teacher.prompts: no template; give one, or null")
        return self


Z = TypeVar("Z", bound=ZeroShotConfig)


class ZeroShotKind(TeacherKind[Z]):
    is_clip = True

    def effective(self, config: RunConfig) -> Z:
        # written out: another default some day is another run
        return super().effective(config).replace(prompts=templates(self.spec.prompts, config.dataset.name))

    @property
    def prompts(self) -> list[str] | str | None:
        return self.spec.prompts

    def texts(
        self, net: Any, tokenizer: Tokenizer, factory: NetworkFactory, identity: dict[str, Any], outputs: Path | None
    ) -> tuple[Tensor, float]:
        """The text features of the classes (C, D), and 1 / zeta, of a CLIP in evaluation; see `text_features`."""
        prompts = self.spec.prompts if isinstance(self.spec.prompts, list) else []
        embeddings = text_features(lambda: net, tokenizer, class_words(factory), prompts, identity, outputs)
        return embeddings, 1 / self.spec.zeta if self.spec.zeta is not None else net.logit_scale.exp().item()


class ZeroShot(nn.Module):
    """A CLIP and the text features of the classes, as a network of kdrun.

    Its one feature is `prelogits`, (B, D): the image features, of length 1.

    Args:
        class_embeddings: (C, D), rows of length 1.
        scale: 1 / zeta.
        resize: bicubic or bilinear, how images come to `size`.
        mean, std: per channel, of pixels in [0, 1].
    """

    class_embeddings: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, clip: nn.Module, class_embeddings: Tensor, scale: float, mean: Sequence[float], std: Sequence[float],
        size: tuple[int, int], name: str, resize: str = "bicubic",
    ) -> None:  # fmt: skip
        super().__init__()
        self.clip: Any = clip
        self.scale = scale
        self.size = size
        self.resize = resize
        self.name = name
        self.dims = {"prelogits": class_embeddings.shape[1]}
        self.register_buffer("class_embeddings", class_embeddings)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def adapt(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or float in [0, 1] -> normalised float32 of the CLIP's size, gray as color."""
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        if x.shape[1] not in (1, 3):
            raise KdrunError(f"{self.name} takes images of 1 or 3 channels, got pixels {tuple(pixels.shape)}")
        x = x.expand(-1, 3, -1, -1)
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode=self.resize, antialias=True).clamp(0, 1)
        return (x - self.mean) / self.std

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        if unknown := [name for name in features if name != "prelogits"]:
            raise ConfigError(f"{self.name} has no feature {unknown[0]!r}; it has prelogits")
        x = self.adapt(view.pixels if isinstance(view, View) else view)
        image = self.clip.encode_image(x)
        with full_precision(image):  # in bfloat16 a cosine times 100 is off by 0.4
            image = F.normalize(image.float(), dim=1)
            logits = self.scale * image @ self.class_embeddings.T
        return Output(logits, {"prelogits": image} if features else {})
