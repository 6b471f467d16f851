"""timm's networks, with published weights or those of a file where they are asked for."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, DataError, KdrunError
from kdrun.core.later import later
from kdrun.models.fit import Fit, hint
from kdrun.models.interface import refuse_function, refuse_network
from kdrun.models.weights import check_state, filling, no_weights, offline_where_there_is_no_network

if TYPE_CHECKING:
    import timm
else:
    timm = later("timm")

log = logging.getLogger(__name__)
USUAL = (TypeError, ValueError, RuntimeError, AssertionError)  # by which networks refuse their arguments


def timm_network(model: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """timm's network, with published weights where `model.pretrained` asks for them.

    Raises:
        ConfigError: it cannot be built, or lacks what kdrun needs.
        DataError: its weights cannot be had, or are another network's.
    """
    refuse_function(model.name)
    of_file = model.pretrained and model.file is not None and model.name != "open_clip"  # which reads its own
    if of_file and timm.get_pretrained_cfg(model.name) is None:
        return _filled(
            timm_network(model.replace(pretrained=False, file=None, new_head=False), num_classes, in_chans), model
        )
    weights: dict[str, Any] = {"pretrained": model.pretrained}
    if model.pretrained:
        overlay: dict[str, Any] = {"state_dict": _of_file(model)} if of_file else {}
        overlay |= {"file": model.file, "entry": model.entry} if model.file is not None and not of_file else {}
        overlay |= {"num_classes": 0} if model.new_head else {}  # timm leaves out the head of other classes
        weights["pretrained_cfg_overlay"] = overlay or None
    unfit = f"{model.name}: the network cannot be built with args {model.args}"
    try:
        fetches = model.pretrained and model.file is None
        with offline_where_there_is_no_network(fetches), filling() as filled:
            net: nn.Module = timm.create_model(
                model.name, num_classes=num_classes, in_chans=in_chans, **weights, **model.args
            )
    except KdrunError:
        raise
    except Exception as error:  # hubs raise many kinds
        if model.pretrained:
            raise DataError(no_weights(model, error)) from error
        if "_model_args" in str(error):  # which timm writes to what the function returned
            refuse_network(None, model.name)
        kind = "" if isinstance(error, USUAL) else f"{type(error).__name__}: "
        raise ConfigError(f"{unfit}: {kind}{error}; see student.args or teacher.model.args") from error
    refuse_network(net, model.name)
    if any(not parameter.numel() for parameter in net.parameters()):
        raise ConfigError(f"{unfit}: some of its weights would be empty; see student.args or teacher.model.args")
    published: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    published.pop("state_dict", None)  # the weights of the file, once more
    heads = published.get("classifier") or ()  # which timm leaves out where the classes are others
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    absent = [name for name in filled.missing if not name.endswith("num_batches_tracked")]
    body = [name for name in absent if not name.startswith(prefixes)]
    source = model.file or "the published file"
    if body:
        raise DataError(f"{model.name}: {source} lacks {len(body)} of its weights, e.g. {body[0]}; not its own?")
    if torch.get_default_device().type != "meta":
        if absent:
            log.info("%s: %s fills all but the classifier, which is new: %d classes", model.name, source, num_classes)
        if more := filled.unexpected:
            told = "%s: %s has %d weights that the network has not, e.g. %s; they are left out"
            log.info(told, model.name, source, len(more), more[0])
    return net


def _of_file(model: ModelConfig) -> dict[str, Tensor]:
    """The weights of `model.file`, under names that timm knows of this network, and converts where they are older."""
    published = timm.get_pretrained_cfg(model.name)
    with torch.device("meta"):
        classes = 0 if model.new_head or published is None else published.num_classes
        own = timm.create_model(model.name, num_classes=classes, **model.args).state_dict()
    where = f"{model.name}: {model.file}"
    try:
        found = Fit(model, own, where, "student", whole=False).read(Path(str(model.file)))
    except DataError as error:
        raise DataError(no_weights(model, error)) from None
    if torch.get_default_device().type != "meta":
        found.say(where)
    return found.state


def _filled(net: nn.Module, model: ModelConfig) -> nn.Module:
    """A network that timm has no weights of, with those of `model.file`."""
    own = net.state_dict()
    where = f"{model.name}: {model.file}"
    found = Fit(model, own, where, "student", whole=not model.new_head).read(Path(str(model.file)))
    state = found.state
    if model.new_head:
        classifier = net.get_classifier()  # type: ignore[operator]
        head = next((f"{name}." for name, module in net.named_modules() if module is classifier), "")
        state = {name: value for name, value in state.items() if not name.startswith(head)}
        state |= {name: value for name, value in own.items() if name.startswith(head)}
    check_state(net, model.name, state, where, hint("student"))
    net.load_state_dict(state)
    if torch.get_default_device().type != "meta":
        found.say(where)
    return net
