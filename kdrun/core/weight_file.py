"""What a file of weights holds, read without running code, and which of its entries is meant."""

import argparse
import datetime
import pathlib
import pickle
import re
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from kdrun.core.errors import ConfigError, DataError, allowed
from kdrun.core.later import later

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np, torch = later("numpy"), later("torch")

EMA = re.compile(r"(^|_)(ema|swa)(_|$)")
"""In the name of an entry: the weights averaged over training, which their authors evaluate."""
AVERAGED = ("state_dict_ema", "ema_state_dict", "ema_model", "model_ema", "ema")
USUAL = ("state_dict", "model", "net", "model_state_dict", "model_state", "network", "weights", "params", "module")
"""Names of entries, the first that there is counts."""
DEPTH = 4  # of entries within entries


@dataclass(frozen=True)
class Entry:
    """The weights that were meant.

    Args:
        place: dotted; empty: the whole file.
        values: name -> tensor, or whatever else stands there.
        others: places of the other weights in the file.
    """

    place: str
    values: Mapping[Any, Any]
    others: tuple[str, ...]

    @property
    def note(self) -> str | None:
        """What to say of the choice; None: there was none."""
        return f"took {self.place}; there are also {', '.join(self.others)}" if self.others else None


def read_entry(path: Path, where: str, entry: str | None = None, key: str = "teacher") -> Entry:
    """The weights of a file of safetensors or of PyTorch; the content tells which it is.

    Args:
        where: the config key and the file, for messages.
        entry: dotted; None: those averaged over training where there are such, else by the usual names.
        key: what `entry` is a key of.

    Raises:
        DataError: absent, damaged, or a pickle that wants to run code.
        ConfigError: several entries to choose from, or no such entry.
    """
    return chosen_entry(_read(path.expanduser(), where), where, entry, key)


def chosen_entry(content: Any, where: str, entry: str | None = None, key: str = "teacher") -> Entry:
    """As `read_entry`, of what stands in the file."""
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: expected names and tensors, got a {type(content).__name__}")
    place, inner = "", content
    if entry is not None:
        place, inner = entry, _at(content, entry, where, key)
    if entry is not None and any(isinstance(value, torch.Tensor) for value in inner.values()):
        return Entry(place, inner, ())
    found = dict(_weights(inner, place))
    most = max((_count(values) for values in found.values()), default=0)
    found = {name: values for name, values in found.items() if 2 * _count(values) >= most}
    if not found:
        if entry is None:
            return Entry("", content, ())  # what is wrong with it is said of its first value
        raise ConfigError(f"{key}.entry: {entry}: no weights there ({where})")
    rank = {name: _rank(name) for name in found}
    best = min(rank.values())
    first, *more = [name for name in found if rank[name] == best]
    if more:
        told = ", ".join([first, *more])
        raise ConfigError(f"{where}: {len(more) + 1} entries hold weights: {told}; choose with {key}.entry={first}")
    return Entry(first, found[first], tuple(name or "the outermost" for name in found if name != first))


@lru_cache(maxsize=256)
def averaged_entry(path: str, _content: str, known: tuple[str, ...] = ()) -> str | None:
    """The entry of averaged weights that is taken where nobody names one and others would do; None: no choice.

    Args:
        _content: the file's hash: a file that changes is looked at again.
        known: entries that were always taken first, and count as none.
    """
    try:
        found = chosen_entry(_read(Path(path).expanduser(), path, mapped=True), path)
    except ConfigError:  # whoever reads the weights says what is wrong
        return None
    return found.place if found.others and _rank(found.place)[0] == 0 and found.place not in known else None


def _rank(place: str) -> tuple[int, int, int]:
    """The least is taken."""
    parts = place.split(".")
    averaged = [part for part in parts if EMA.search(part)]
    if averaged:
        return 0, AVERAGED.index(averaged[0]) if averaged[0] in AVERAGED else len(AVERAGED), len(parts)
    if parts[-1] in USUAL:
        return 1, USUAL.index(parts[-1]), len(parts)
    return (2, 0, 0) if place == "" else (3, 0, 0)


def _count(values: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, torch.Tensor) for value in values.values())


def _weights(content: Mapping[Any, Any], place: str, depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """(dotted place, mapping) of each in which at least half of the values are tensors."""
    if _count(content) and 2 * _count(content) >= len(content):
        yield place, content
    for name, value in content.items() if depth < DEPTH else ():
        if isinstance(name, str) and isinstance(value, Mapping):
            yield from _weights(value, f"{place}.{name}".lstrip("."), depth + 1)


def _at(content: Mapping[Any, Any], entry: str, where: str, key: str) -> Mapping[Any, Any]:
    """The mapping at a dotted place, whose parts may hold dots themselves."""
    found: Any = content
    rest = entry
    while rest:
        names = [name for name in found if isinstance(name, str) and f"{rest}.".startswith(f"{name}.")]
        name = max(names, key=len, default=None)
        if name is None or not isinstance(found[name], Mapping):
            places = [place for place, _ in _weights(content, "") if place]
            hint = (
                allowed(entry, places, most=12) if places else "; its names and tensors stand outermost, leave it out"
            )
            raise ConfigError(f"{key}.entry: {where}: no entry {entry!r}{hint}")
        found, rest = found[name], rest[len(name) + 1 :]
    mapping: Mapping[Any, Any] = found
    return mapping


# ---------------------------------------------------------------------------------------------------------- the file


def _read(path: Path, where: str, mapped: bool = False) -> Any:
    """What stands in the file, as PyTorch or safetensors read it.

    Args:
        mapped: tensors need not be read, where the format allows that.
    """
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what is odd in a file; what is wrong, the error says
            start = file.read(9)
            file.seek(0)
            # A zip archive or a pickle is PyTorch's. The header of safetensors is JSON after eight bytes of length.
            if not start.startswith((b"PK", b"\x80")) or start[8:] == b"{":
                return {} if mapped else load_file(path)  # which has no entries to choose from
            # sparse weights would be made on the default device, which may be meta
            with torch.device("cpu"), torch.serialization.safe_globals(_plain_data()):
                if mapped and start.startswith(b"PK"):
                    return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
                return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except pickle.UnpicklingError as error:
        raise DataError(_refused(path, where, str(error))) from None
    except Exception as error:  # a damaged file may raise anything
        why = shorten(str(error) or type(error).__name__, 120, placeholder=" ...")  # torch adds pages of advice
        raise DataError(f"{where}: not a readable file of weights ({why})") from None


def _plain_dict(*_: object) -> dict[Any, Any]:
    """In place of a defaultdict, which PyTorch does not fill."""
    return {}


def _plain_list(given: Iterable[Any] = (), _: object = None) -> list[Any]:
    """In place of a deque."""
    return list(given)


def _plain_data() -> list[Any]:
    """Types of data that checkpoints hold beside weights. None of them runs anything when it is made."""
    numbers = [
        getattr(np.dtypes, f"{name}DType")
        for name in (
            "Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float16", "Float32",
            "Float64", "LongDouble", "Complex64", "Complex128", "Str", "Bytes", "DateTime64", "TimeDelta64",
        )
    ]  # fmt: skip
    makers = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}
    arrays = [
        (maker, f"numpy.{module}.multiarray.{name}")
        for name, maker in makers.items()
        for module in ("core", "_core")  # before NumPy 2, and since
    ]
    # paths as mere names: they are of another machine, maybe of Windows
    paths = [
        (getattr(pathlib, f"Pure{kind}Path"), f"pathlib{module}.{name}")
        for kind in ("Posix", "Windows")
        for name in (f"{kind}Path", f"Pure{kind}Path")
        for module in ("", "._local")
    ]
    return [
        argparse.Namespace, types.SimpleNamespace, np.ndarray, np.dtype,
        (_plain_dict, "collections.defaultdict"), (_plain_list, "collections.deque"),
        *numbers, *arrays, *paths, datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
        datetime.timezone, list, dict, tuple, int, float, str, bool, bytes, frozenset, slice, range,
    ]  # fmt: skip


HARM = frozenset({"os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "builtins", "runpy", "importlib"})
"""Modules that no checkpoint has a reason to name."""
CONVERT = (
    "import torch; c = torch.load({path!r}, map_location='cpu', weights_only=False); "
    "c = c if hasattr(c, 'state_dict') else next((c[k] for k in ('ema', 'state_dict', 'model') if c.get(k)), c); "
    "torch.save(c.state_dict() if hasattr(c, 'state_dict') else c, 'weights.pt')"
)
"""A line of Python that leaves the weights alone of a file; it runs the file's code."""


def _refused(path: Path, where: str, message: str) -> str:
    """What is in the way of a file that wants to run code, and how its owner gets rid of it."""
    named: list[str] = []
    try:
        with torch.serialization.safe_globals(_plain_data()):
            named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of a damaged file, or of the older format
        named = re.findall(r"GLOBAL (\S+) was not an allowed", message)
    said = f"{where}: holds more than weights (reading it would run its code), or is damaged"
    if not named:
        return said
    said += f": {', '.join(named[:3])}" + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    packages = [name.partition(".")[0] for name in named]
    if harm := [package for package in packages if package in HARM]:
        return f"{said}; no weights need {harm[0]}, take another file"
    line = f'python -c "{CONVERT.format(path=str(path))}"'
    return f"{said}; if you trust it, convert it where {packages[0]} is installed: {line}"
