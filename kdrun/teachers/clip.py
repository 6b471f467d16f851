"""A CLIP as a teacher: it tells classes by their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.teacher import TeacherConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.hashing import file_hash
from kdrun.data.views.view import View
from kdrun.models.class_texts import class_words, text_features
from kdrun.models.factory import NetworkFactory
from kdrun.models.network import Network, load_network
from kdrun.models.open_clip import Asked, find_clip, image_size, open_clip
from kdrun.models.output import Output


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
        kind = "cpu" if image.is_meta else image.device.type
        with torch.autocast(kind, enabled=False):  # in bfloat16 a cosine times 100 is off by 0.4
            image = F.normalize(image.float(), dim=1)
            logits = self.scale * image @ self.class_embeddings.T
        return Output(logits, {"prelogits": image} if features else {})


def teacher(
    spec: TeacherConfig,
    factory: NetworkFactory,
    key: str = "teacher",
    weights: bool = True,
    outputs: Path | None = None,
) -> ZeroShot:
    """The teacher of source open_clip.

    Args:
        key: where `spec` stands in the configuration, for messages.
        weights: False: the network and its files are checked against each other, and nothing is filled or computed.
        outputs: folder whose `artifacts/text_features` keeps the text features; None: they are not kept.

    Raises:
        ConfigError, DataError: no open_clip; weights that cannot be had or do not fit; classes without names.
    """
    words = class_words(factory)
    found = find_clip(Asked.by_teacher(spec, key))
    net = found.filled(weights)
    size = image_size(net)
    asked = None if spec.model is None else spec.model.size
    if asked is not None and size != (asked, asked):
        raise ConfigError(
            f"{key}.model.size: {asked}, but {found.name} takes images of {size[0]} (its positional embedding has no "
            f"other); leave it out, or stretch the embedding with {key}.model.args.force_image_size={asked}"
        )
    own = {**net.visual.preprocess_cfg, **found.preprocess}
    mean, std = (
        _three(getattr(spec.model, name, None) or own[name], f"{key}.model.{name}") for name in ("mean", "std")
    )
    resize = "bilinear" if own.get("interpolation") == "bilinear" else "bicubic"
    if not weights:
        return ZeroShot(net, torch.zeros(factory.num_classes, found.width), 1.0, mean, std, size, found.name, resize)
    net.eval()
    prompts = spec.prompts if isinstance(spec.prompts, list) else []
    embeddings = text_features(lambda: net, found.tokenizer(), words, prompts, found.identity, outputs)
    scale = 1 / spec.zeta if spec.zeta is not None else net.logit_scale.exp().item()
    return ZeroShot(net, embeddings, scale, mean, std, size, found.name, resize)


def trained_teacher(spec: TeacherConfig, factory: NetworkFactory, run: Path, outputs: Path | None = None) -> ZeroShot:
    """The teacher of source clip, from the run of method=contrastive that trained it."""
    path = run / "student.safetensors"
    return _of_kdrun(load_network(path), spec, factory, {"weights": file_hash(str(path), "teacher")}, outputs)


def untrained_teacher(spec: TeacherConfig, factory: NetworkFactory) -> ZeroShot:
    """The network of source clip without anything that it learned."""
    if spec.model is None:
        raise ConfigError("teacher.model: missing; a value is required")
    class_words(factory)
    return _of_kdrun(factory.network(spec.model, seed=0, role="teacher"), spec, factory)


def _of_kdrun(
    network: Network, spec: TeacherConfig, factory: NetworkFactory, identity: dict[str, Any] | None = None,
    outputs: Path | None = None,
) -> ZeroShot:  # fmt: skip
    net: Any = network.net.clip
    embeddings, scale = network.net.class_embeddings, 1.0
    if identity is not None:
        tokenizer = open_clip().SimpleTokenizer(context_length=net.context_length)
        prompts = spec.prompts if isinstance(spec.prompts, list) else []
        embeddings = text_features(lambda: net, tokenizer, class_words(factory), prompts, identity, outputs)
        scale = 1 / spec.zeta if spec.zeta is not None else net.logit_scale.exp().item()
    return ZeroShot(net, embeddings, scale, network.spec.mean, network.spec.std, image_size(net), network.name)


def _three(values: Sequence[float], key: str) -> list[float]:
    if len(values) not in (1, 3):
        raise ConfigError(f"{key}: expected 3 numbers, one for each channel, got {list(values)}")
    return list(values) * (3 // len(values))
