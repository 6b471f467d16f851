"""What kdrun needs of a network that is registered with timm: docs/extend/network.md, as refusals."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.later import later

if TYPE_CHECKING:
    import timm
    from timm.models import resnet
else:
    timm, resnet = later("timm"), later("timm.models.resnet")

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


def last_activations(net: Any, name: str) -> dict[str, tuple[nn.Module, nn.BatchNorm2d | None]]:
    """`pre1` and so on -> the activation that ends this stage, whose input is the feature, and the batch normalization
    before it, None where that is not of all channels.

    A network names both as `act` and `norm` in the stage's entry of its feature_info; where the activation begins the
    next stage, as in networks that normalise first, it is that one. An activation of several inputs makes the feature
    of them by its method `before`. Entries without `act` have no such feature. Of timm's networks ResNets are known.

    Raises:
        ConfigError: an entry names what is not there.
    """
    found = {}
    for i, entry in enumerate(net.feature_info or ()):
        told = {**_of_resnet(net, entry["module"]), **entry} if isinstance(net, resnet.ResNet) else entry
        if not told.get("act"):
            continue
        try:
            act = net.get_submodule(told["act"])
            norm = net.get_submodule(told["norm"]) if told.get("norm") else None
        except AttributeError as error:
            raise ConfigError(f"{KEY}: {name}: feature_info[{i}]: {error}; {PAGE}") from None
        whole = isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.num_features == entry["num_chs"]
        found[f"pre{i + 1}"] = (act, norm if whole else None)
    return found


def _of_resnet(net: Any, stage: str) -> dict[str, str]:
    """`act` and `norm` of a stage of timm's ResNet; none where it ends otherwise than the original does."""
    module = net.get_submodule(stage)
    ends: dict[type, tuple[str, str]] = {resnet.BasicBlock: ("act2", "bn2"), resnet.Bottleneck: ("act3", "bn3")}
    if stage == "act1":
        act, norm = "act1", "bn1"
    elif isinstance(module, nn.Sequential) and type(module[-1]) in ends:
        act, norm = (f"{stage}.{len(module) - 1}.{part}" for part in ends[type(module[-1])])
    else:
        return {}
    return {"act": act, "norm": norm} if isinstance(net.get_submodule(act), nn.ReLU) else {}


def whole_pass(net: Any) -> dict[str, bool]:
    """What `forward_intermediates` is told so that it goes on behind the last map that is asked; some stop there."""
    give = getattr(net, "forward_intermediates", None)
    return {"stop_early": False} if callable(give) and "stop_early" in inspect.signature(give).parameters else {}


def refuse_pixels(pixels: object) -> None:
    """Raises KdrunError for what is no (B, C, H, W) tensor of bytes or floats; their range would take a look at all."""
    if isinstance(pixels, Tensor):
        if pixels.ndim == 4 and (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
            return
        got = f"a tensor {tuple(pixels.shape)} {str(pixels.dtype).removeprefix('torch.')}"
    else:
        shape = f" {tuple(pixels.shape)}" if hasattr(pixels, "shape") else ""
        got = f"{type(pixels).__module__.partition('.')[0]}'s {type(pixels).__name__}{shape}"
    raise KdrunError(
        f"pixels: a network takes a torch tensor (B, C, H, W), uint8 in [0, 255] or float in [0, 1], got {got}; of an "
        "array (H, W, C): torch.from_numpy(array).permute(2, 0, 1)[None]"
    )


def refuse_logits(logits: object, name: str, num_classes: int) -> None:
    """Raises ConfigError for what is not (B, num_classes)."""
    if not isinstance(logits, Tensor):
        raise ConfigError(f"{KEY}: {name} gives a {type(logits).__name__}, expected logits (B, classes); {PAGE}")
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ConfigError(f"{KEY}: {name} gives {tuple(logits.shape)}, expected (B, {num_classes}); {PAGE}")
