"""What kdrun needs of a network that is registered with timm: docs/extend/network.md, as refusals."""

import inspect
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from kdrun.core.errors import ConfigError

KEY = "student.name or teacher.model.name"
PAGE = "see docs/extend/network.md"
# What timm.create_model hands to every function, and what kdrun adds.
HANDED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "num_classes", "in_chans")
STAGES = ("forward_intermediates", "forward_head")


def refuse_function(name: str) -> None:
    """Raises ConfigError for a registered function that does not take what it will be given."""
    if not timm.is_model(name):  # a hub's, or unknown: timm says it
        return
    parameters = inspect.signature(timm.model_entrypoint(name)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if missing := [word for word in HANDED if word not in parameters]:
        raise ConfigError(f"{KEY}: {name}() does not take {', '.join(missing)}; end its arguments with **_; {PAGE}")


def refuse_network(net: object, name: str) -> None:
    """Raises ConfigError for what is no network, or has no classifier to ask for."""
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{KEY}: {name}() does not return a torch.nn.Module; {PAGE}")
    if not callable(getattr(net, "get_classifier", None)):
        raise ConfigError(f"{KEY}: {name} lacks get_classifier(), which returns its last linear layer; {PAGE}")


def stage_channels(net: Any, name: str) -> dict[str, int]:
    """Channels of the feature maps `stage1` and so on; none where the network has no way to give them.

    Raises:
        ConfigError: an entry of its feature_info without num_chs.
    """
    if not all(callable(getattr(net, member, None)) for member in STAGES):
        return {}
    found: dict[str, int] = {}
    for i, entry in enumerate(getattr(net, "feature_info", None) or ()):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("num_chs"), int):
            raise ConfigError(f"{KEY}: {name}: feature_info[{i}] lacks num_chs, a number of channels; {PAGE}")
        found[f"stage{i + 1}"] = entry["num_chs"]
    return found


def whole_pass(net: Any) -> dict[str, bool]:
    """What `forward_intermediates` is told so that it goes on behind the last map that is asked; some stop there."""
    give = getattr(net, "forward_intermediates", None)
    return {"stop_early": False} if callable(give) and "stop_early" in inspect.signature(give).parameters else {}


def refuse_logits(logits: object, name: str, num_classes: int) -> None:
    """Raises ConfigError for what is not (B, num_classes)."""
    if not isinstance(logits, Tensor):
        raise ConfigError(f"{KEY}: {name} gives a {type(logits).__name__}, expected logits (B, classes); {PAGE}")
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ConfigError(f"{KEY}: {name} gives {tuple(logits.shape)}, expected (B, {num_classes}); {PAGE}")
