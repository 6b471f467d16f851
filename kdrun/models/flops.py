"""Floating-point operations of a network for one image, as torch's own counter counts them.

Convolutions, matrix products and attention; a multiplication and the addition behind it are two. Nothing is computed:
the network is built without memory.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.dataset import FilesConfig, facts_of
from kdrun.core.registry import load, lookup, registered
from kdrun.models.network import Network, NetworkSpec, outline

log = logging.getLogger(__name__)


def flops_of(network: Network, size: tuple[int, int]) -> int | None:
    """Of a forward pass over one image of (height, width) in evaluation; None: the network cannot say."""
    if type(network) is not Network:  # a teacher of texts, say
        return None
    return _counted(json.dumps(asdict(network.spec)), size)


def flops_of_record(record: Mapping[str, Any]) -> int | None:
    """Of the headline network of a record that does not hold it; None: the record does not tell enough."""
    headline = str(record.get("headline"))
    students = (record.get("config") or {}).get("students") or []
    number = int(headline.rpartition("_")[2]) - 1 if headline.rpartition("_")[2].isdecimal() else 0
    classes = (record.get("split") or {}).get("labeled_per_class")
    if not classes or number >= len(students) or headline not in (record.get("nets") or {}):
        return None
    model, dataset = students[number], str(record.get("dataset"))
    channels, side = _image(dataset)
    side = model.get("size") or side
    if channels is None or side is None:
        _say_unknown(dataset, "channels" if channels is None else "size")
        return None
    spec = NetworkSpec(model, len(classes), channels, (0.0,) * channels, (1.0,) * channels)
    return _counted(json.dumps(asdict(spec)), (side, side))


@cache
def _say_unknown(dataset: str, fact: str) -> None:
    """Once, not for each record."""
    log.warning("dataset=%s: its facts give no %s of images; operations of older records stay uncounted", dataset, fact)


def _image(dataset: str) -> tuple[int | None, int | None]:
    """Channels of a dataset's images, and their side where it is always the same."""
    if dataset not in registered("dataset"):  # of a plug-in that is not here
        return None, None
    if issubclass(lookup("dataset", dataset, "dataset.name").Config, FilesConfig):
        return 3, None  # decoded as color, at the run's size
    facts = facts_of(dataset)
    return facts.channels, facts.size


def operations(network: nn.Module, pixels: Tensor) -> int:
    """Of a forward pass over these pixels (B, C, H, W), which the network is shown, with whatever it raises."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(pixels)
    return int(counter.get_total_flops())


@lru_cache(maxsize=256)
def _counted(spec: str, size: tuple[int, int]) -> int | None:
    load("model")

    told = NetworkSpec(**json.loads(spec))
    try:
        with torch.device("meta"):
            return operations(outline(told).eval(), torch.empty((1, told.in_chans, *size), dtype=torch.uint8))
    except Exception as error:  # networks of others raise many kinds
        log.info("%s: its operations cannot be counted (%s)", told.model.get("name"), error)
        return None
