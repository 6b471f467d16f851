"""Weights from files and hubs: read without running code, renamed, checked."""

import logging
import math
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.weight_file import read_entry


@dataclass
class Filled:
    """What timm's filling of a network left over."""

    missing: list[str]
    """Weights of the network that the file lacks."""
    unexpected: list[str]
    """Weights of the file that the network lacks."""


@contextmanager
def filling() -> Iterator[Filled]:
    """Collects what does not fit where timm fills a network, and only logs it: lists of names, once for each build."""
    load, found = nn.Module.load_state_dict, Filled([], [])
    builder = logging.getLogger("timm.models._builder")

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load(self, *args, **kwargs)
        found.missing.extend(result.missing_keys)
        found.unexpected.extend(result.unexpected_keys)
        return result

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO and not record.getMessage().startswith("Unexpected keys")

    nn.Module.load_state_dict = watched  # type: ignore[method-assign]
    builder.addFilter(matters)
    try:
        yield found
    finally:
        builder.removeFilter(matters)
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


@contextmanager
def offline_where_there_is_no_network(fetches: bool = True) -> Iterator[None]:
    """The hub's client takes what it has stored, or gives up, at once; left alone it tries for 45 seconds."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if fetches and not before:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError:  # an answer
            constants.HF_HUB_OFFLINE = False
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def no_weights(model: ModelConfig, error: Exception) -> str:
    import timm

    published = timm.get_pretrained_cfg(model.name)
    place = None if published is None else published.hf_hub_id or published.url
    why = f"({type(error).__name__}: {shorten(str(error), 160, placeholder=' ...')})"
    if model.file is not None:
        if isinstance(error, DataError):  # of the reader, whose lines say what to do
            why = "(" + str(error).removeprefix(f"{model.name}: {model.file}: ") + ")"
        hint = "" if model.new_head else " (new_head=true takes a file without a classifier)"
        return f"{model.name}: {model.file}: not a file of its weights {why}; published as {place}{hint}"
    files = f"model.safetensors of {place} (Hugging Face hub)" if published and published.hf_hub_id else place
    return (
        f"{model.name}: its published weights cannot be had {why}; fetch {files} where there is a network and name the "
        "file in student.file or teacher.model.file, or set pretrained=false"
    )


def read_state(path: Path, where: str, entry: str | None = None, key: str = "teacher") -> dict[str, Tensor]:
    """Weights from safetensors, or from a PyTorch file read without unpickling code, under the names of the file.

    Args:
        where: the config key and the file, for messages.
        entry: see `read_entry`.

    Raises:
        DataError: absent, damaged, or a pickle that wants to run code.
    """
    return _tensors(read_entry(path, where, entry, key).values, where)


def _tensors(values: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DataError(f"{where}: expected names and tensors, got {name!r}: {type(value).__name__}")
    return dict(values)


def check_state(net: nn.Module, name: str, state: Mapping[str, Tensor], where: str, hint: str) -> None:
    """Refuse weights that do not fit, naming the first difference. Any precision of floating-point numbers fits."""
    own = net.state_dict()
    unfit = f"{where} does not fit {name}"
    # Counters of batches are missing in old files and change nothing in evaluation.
    missing = [part for part in own if part not in state and not part.endswith("num_batches_tracked")]
    extra = [part for part in state if part not in own]
    if missing or extra:
        parts = [
            f"{len(names)} {what}, e.g. {names[0]}"
            for names, what in ((missing, "missing"), (extra, "too many"))
            if names
        ]
        raise ConfigError(f"{unfit}: {'; '.join(parts)}; {hint}")
    for key, value in own.items():
        if key not in state:
            continue
        given = state[key]
        if given.shape != value.shape:
            shapes = f"is {tuple(given.shape)}, the network for this dataset has {tuple(value.shape)}"
            raise ConfigError(f"{unfit}: {key} {shapes}; {hint}")
        dense = given.layout == torch.strided and not given.is_meta
        if not dense or (value.is_floating_point() and not given.is_floating_point()):
            kind = "without content" if given.is_meta else given.dtype if dense else given.layout
            raise DataError(f"{where}: {key} is {kind}, expected dense floating-point numbers")
        if (odd := odd_value(key, given)) is not None:
            raise DataError(f"{where}: {key} {odd}")


def odd_value(name: str, value: Tensor) -> str | None:
    """`holds inf`, of a tensor that is not finite or is a variance below 0; None: it is as it should be."""
    if not value.is_floating_point() or not value.numel() or value.is_meta:
        return None
    dense = value.detach() if value.element_size() >= 4 else value.detach().float()  # of 8 bits there is no minimum
    low, high = (float(end) for end in dense.aminmax())  # NaN where one value is
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"holds {high if math.isfinite(low) else low:g}"
    if name.rpartition(".")[2] == "running_var" and low < 0:
        return f"holds {low:g}, and no variance is below 0"
    return None
