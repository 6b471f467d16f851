"""Networks for the images and classes of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.core.later import later
from kdrun.models import open_clip
from kdrun.models.network import Network, NetworkSpec, build_network

if TYPE_CHECKING:
    import timm
else:
    timm = later("timm")


@dataclass(frozen=True)
class NetworkFactory:
    """What the networks of a run have in common: the images that come in, and the classes."""

    num_classes: int
    in_chans: int
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    """In words, in the order of the labels; empty where the dataset has none."""

    def network(self, model: ModelConfig, seed: int, role: str = "") -> Network:
        """A new network for this dataset."""
        spec = self.spec_of(model)
        return build_network(
            ModelConfig.model_validate(spec.model), num_classes=spec.num_classes, in_chans=spec.in_chans,
            mean=spec.mean, std=spec.std, seed=seed, role=role,
        )  # fmt: skip

    def spec_of(self, model: ModelConfig) -> NetworkSpec:
        """What a network for this dataset is built from."""
        if model.name == "open_clip" and "vision_cfg" not in model.args:
            model = open_clip.student(model)
        mean, std = model.mean, model.std
        if model.pretrained and (mean is None or std is None):  # the weights expect their own
            published = timm.get_pretrained_cfg(model.name)
            if published is not None:
                mean, std = mean or list(published.mean), std or list(published.std)
        own = [
            tuple(
                for_channels(
                    given or usual, self.in_chans, f"{model.name}: {name} (student.{name} or teacher.model.{name})"
                )
            )
            for name, given, usual in (("mean", mean, self.mean), ("std", std, self.std))
        ]
        return NetworkSpec(model.model_dump(), self.num_classes, self.in_chans, own[0], own[1])


def for_channels(values: Sequence[float], in_chans: int, key: str) -> Sequence[float]:
    """Statistics of color images for gray ones, and one number for all channels; `key` is blamed for another length."""
    if len(values) == in_chans:
        return values
    if len(values) == 1 or (in_chans == 1 and len(values) == 3):
        return [sum(values) / len(values)] * in_chans
    raise ConfigError(f"{key}: {len(values)} numbers for images of {in_chans} channels; give {in_chans}")
