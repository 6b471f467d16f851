"""Weights from files and hubs: read without running code, renamed, checked."""

import math
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, DataError


@contextmanager
def missing_weights(names: list[str]) -> Iterator[None]:
    """Collects what a file of weights lacks. timm only logs it, and trains on from random numbers."""
    load = nn.Module.load_state_dict

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load(self, *args, **kwargs)
        names.extend(result.missing_keys)
        return result

    nn.Module.load_state_dict = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
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
    line = shorten(str(error), 160, placeholder=" ...")
    why = f"({type(error).__name__}: {line})"
    if model.file is not None:
        hint = "" if model.new_head else " (new_head=true takes a file without a classifier)"
        return f"{model.name}: {model.file}: not a file of its weights {why}; published as {place}{hint}"
    files = f"model.safetensors of {place} (Hugging Face hub)" if published and published.hf_hub_id else place
    return (
        f"{model.name}: its published weights cannot be had {why}; fetch {files} where there is a network and name the "
        "file in student.file or teacher.model.file, or set pretrained=false"
    )


HINT = "see teacher.strip_prefix, teacher.rename and teacher.model.args"


def read_state(path: Path, where: str) -> dict[str, Tensor]:
    """Weights from safetensors, or from a PyTorch file read without unpickling code; the content tells which it is.

    Of a checkpoint, the entry state_dict, model or net is taken.

    Args:
        where: the config key and the file, for messages.

    Raises:
        DataError: absent, damaged, or a pickle that wants to run code.
    """
    import pickle

    from safetensors.torch import load_file

    path = path.expanduser()
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what is odd in a file; what is wrong, the error says
            start = file.read(9)
            file.seek(0)
            # A zip archive or a pickle is PyTorch's. The header of safetensors is JSON after eight bytes of length.
            if start.startswith((b"PK", b"\x80")) and start[8:] != b"{":
                with torch.device("cpu"):  # sparse weights would be made on the default device, which may be meta
                    content = torch.load(file, map_location="cpu", weights_only=True)
            else:
                content = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except pickle.UnpicklingError:
        raise DataError(f"{where}: holds more than weights (reading it would run its code), or is damaged") from None
    except Exception as error:  # a damaged file may raise anything
        why = shorten(str(error) or type(error).__name__, 120, placeholder=" ...")  # torch adds pages of advice
        raise DataError(f"{where}: not a readable file of weights ({why})") from None
    for entry in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected names and tensors, got a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DataError(f"{where}: expected names and tensors, got {name!r}: {type(value).__name__}")
    return content


def renamed(state: Mapping[str, Tensor], strip_prefix: str, rename: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """The same weights under the network's names: a prefix taken off, then leading parts replaced.

    Raises:
        ConfigError: two weights get one name.
    """
    out: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    for given, value in state.items():
        name = given.removeprefix(strip_prefix)
        for old, new in rename.items():
            if name == old or name.startswith(f"{old}."):
                name = new + name[len(old) :]
                break
        if name in out:
            raise ConfigError(f"{where}: {came_from[name]} and {given} both become {name}; {HINT}")
        out[name], came_from[name] = value, given
    return out


def check_state(net: nn.Module, name: str, state: Mapping[str, Tensor], where: str, hint: str = HINT) -> None:
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
