"""A published CLIP (Radford et al. 2021, arXiv 2103.00020), through open_clip."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import model_validator
from torch import nn

from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import register
from kdrun.core.schema import FileContent
from kdrun.models.class_texts import class_words
from kdrun.models.factory import NetworkFactory
from kdrun.models.open_clip import Asked, find_clip, image_size
from kdrun.teachers.kind import frozen
from kdrun.teachers.zero_shot import ZeroShot, ZeroShotConfig, ZeroShotKind


class OpenClipConfig(ZeroShotConfig):
    model: ModelConfig | None = None
    """Its name is open_clip's."""
    path: Annotated[str | None, FileContent(whole=True)] = None
    """Weights of a file, as of source=file, or a folder as open_clip saves it (open_clip_config.json and weights),
    which needs no `model`."""
    pretrained: str | None = None
    """The tag of published weights; beside `path`, the tag whose preprocessing the file expects. `local-dir:<folder>`
    is `path`."""

    @model_validator(mode="before")
    @classmethod
    def local_dir(cls, node: Any) -> Any:
        """`pretrained: local-dir:<folder>`, as open_clip writes it, is a path."""
        given = node.get("pretrained") if isinstance(node, Mapping) else None
        if not isinstance(given, str) or not given.startswith("local-dir:"):
            return node
        return {**node, "pretrained": None, "path": given.removeprefix("local-dir:")}

    @model_validator(mode="after")
    def of_some_weights(self) -> Self:
        if self.path is None and (self.model is None or self.pretrained is None):
            raise ValueError(
                "open_clip needs teacher.model.name and teacher.pretrained (a published tag), or teacher.path"
            )
        if self.model is not None and self.model.new_head:
            raise ValueError("teacher.model.new_head: a CLIP has no head; set it to false")
        if self.model is not None and self.model.head != "linear":
            raise ValueError("teacher.model.head: a CLIP has none; leave it linear")
        return self


@register("teacher", "open_clip")
class OpenClipTeacher(ZeroShotKind[OpenClipConfig]):
    Config = OpenClipConfig

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        return self._network(factory, True, outputs)

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return self._network(factory, False, None)

    def effective(self, config: RunConfig) -> OpenClipConfig:
        return super().effective(config).replace(model=self.spec.model and frozen(self.spec.model))

    def _network(self, factory: NetworkFactory, weights: bool, outputs: Path | None) -> ZeroShot:
        """Checked against its weights; with `weights` filled with them, and with the text features of the classes.

        Raises:
            ConfigError, DataError: no open_clip; weights that cannot be had or do not fit; classes without names.
        """
        class_words(factory)
        model, key = self.spec.model, f"{self.key}.model"
        found = find_clip(self._asked())
        net = found.filled(weights)
        size = image_size(net)
        asked = None if model is None else model.size
        if asked is not None and size != (asked, asked):
            raise ConfigError(
                f"{key}.size: {asked}, but {found.name} takes images of {size[0]} (its positional embedding has no "
                f"other); leave it out, or stretch the embedding with {key}.args.force_image_size={asked}"
            )
        own = {**net.visual.preprocess_cfg, **found.preprocess}
        mean, std = (_three(getattr(model, name, None) or own[name], f"{key}.{name}") for name in ("mean", "std"))
        embeddings, scale = torch.zeros(factory.num_classes, found.width), 1.0
        if weights:
            embeddings, scale = self.texts(net.eval(), found.tokenizer(), factory, found.identity, outputs)
        resize = "bilinear" if own.get("interpolation") == "bilinear" else "bicubic"
        return ZeroShot(net, embeddings, scale, mean, std, size, found.name, resize)

    def _asked(self) -> Asked:
        spec, key = self.spec, self.key
        name, args = (None, {}) if spec.model is None else (spec.model.name, spec.model.args)
        keys = (f"{key}.model", f"{key}.model.name", f"{key}.model.args", f"{key}.path", f"{key}.pretrained")
        return Asked(name, args, spec.path, spec.pretrained, *keys, None if spec.model is None else spec.model.entry)


def _three(values: Sequence[float], key: str) -> list[float]:
    if len(values) not in (1, 3):
        raise ConfigError(f"{key}: expected 3 numbers, one for each channel, got {list(values)}")
    return list(values) * (3 // len(values))
