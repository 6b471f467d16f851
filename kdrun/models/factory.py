"""Networks for the images and classes of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

import timm

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.models import open_clip
from kdrun.models.network import Network, build_network


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
        if model.name == "open_clip" and "vision_cfg" not in model.args:
            model = open_clip.student(model)
        mean, std = model.mean, model.std
        if model.pretrained and (mean is None or std is None):  # the weights expect their own
            published = timm.get_pretrained_cfg(model.name)
            if published is not None:
                mean, std = mean or list(published.mean), std or list(published.std)
        return build_network(
            model,
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            mean=for_channels(mean or self.mean, self.in_chans),
            std=for_channels(std or self.std, self.in_chans),
            seed=seed,
            role=role,
        )


def for_channels(values: Sequence[float], in_chans: int) -> Sequence[float]:
    """Statistics of color images for gray ones, and one number for all channels."""
    if len(values) == in_chans:
        return values
    if in_chans == 1 or len(values) == 1:
        return [sum(values) / len(values)] * in_chans
    raise ConfigError(f"mean, std: {len(values)} numbers for images of {in_chans} channels")
