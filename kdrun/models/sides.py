"""The sides of images that a network takes, tried without memory."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from textwrap import shorten

from torch import Tensor

from kdrun.core.errors import ConfigError, KdrunError
from kdrun.models.network import Network, NetworkSpec, outline

UNFIT = (AssertionError, RuntimeError, ValueError)  # by which networks refuse images, KdrunError not among them
log = logging.getLogger(__name__)


def refuse_images(network: Network, pixels: Tensor, role: str, key: str, fresh: bool) -> None:
    """Refuse a network that does not take such images; the line has what was tried and would do.

    Args:
        network: on the meta device.
        pixels: (B, C, H, W) uint8 on the meta device.
        role: of the network, e.g. student_2.
        key: where its configuration stands, e.g. students.1.
        fresh: it starts from nothing, so that another shape of it would do as well; weights would not fit.

    Raises:
        ConfigError: with the size that it was made for, and with the argument that makes it for these, where they do.
    """
    try:
        why = _unfit(network, pixels)
    except NotImplementedError as error:
        log.debug("%s cannot be tried without memory (%s)", network.name, error)  # the run will tell
        return
    if why is None:
        return
    size = "x".join(map(str, pixels.shape[-2:])) if network.size is None else f"{network.size}x{network.size}"
    remedies = [remedy for remedy, spec in _others(network.spec, pixels, key, fresh) if _takes(spec, pixels)]
    hint = f"give {' or '.join(remedies)}" if remedies else f"see {key}.size"
    reason = f" ({shorten(why, 90, placeholder=' ...')})" if why else ""
    raise ConfigError(f"{role}: {network.name} does not take images of {size}{reason}; {hint}")


def _unfit(network: Network, pixels: Tensor) -> str | None:
    """What a network says against these images; None: nothing. Raises NotImplementedError where it cannot be tried."""
    try:
        network(pixels)
    except UNFIT as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            raise NotImplementedError(str(error)) from error
        return next(iter(str(error).rstrip(".").splitlines()), "")
    return None


def _others(spec: NetworkSpec, pixels: Tensor, key: str, fresh: bool) -> Iterator[tuple[str, NetworkSpec]]:
    """What could be asked for instead, in words and as a network."""
    made = getattr(outline(spec).net, "pretrained_cfg", None) or {}
    side = (made.get("input_size") or (None,))[-1]
    if side is not None and side != spec.model["size"]:
        yield f"{key}.size={side}", replace(spec, model={**spec.model, "size": side})
    height, width = pixels.shape[-2:]
    side = spec.model["size"] or (height if height == width else None)
    args = spec.model["args"]
    if fresh and side is not None and "img_size" not in args:
        yield f"+{key}.args.img_size={side}", replace(spec, model={**spec.model, "args": {**args, "img_size": side}})


def _takes(spec: NetworkSpec, pixels: Tensor) -> bool:
    try:
        return _unfit(outline(spec), pixels) is None
    except (KdrunError, NotImplementedError):  # not known, so not promised
        return False
