"""Weights of a file under the names of a network: what is left out, renamed, freed of prefixes, or paired by order."""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kdrun.config.weights import WeightsConfig
from kdrun.core.errors import ConfigError, DataError
from kdrun.core.weight_file import read_entry

log = logging.getLogger(__name__)

PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "network.", "student.", "teacher.", "backbone.", "encoder.", "head.",
    "ema_model.",
)  # fmt: skip
"""What training scripts put before the names of a network."""
NO_WEIGHTS = re.compile(
    r"(^|\.)(n_averaged|total_ops|total_params)$"
    r"|^((module|_orig_mod|model)\.)*(criterion|loss|loss_fn|optim|optimizer|(lr_)?scheduler)\."
)
"""What training scripts and profilers leave among the weights."""
KINDS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Fitted:
    """Weights under the names of a network.

    Args:
        notes: what was chosen, left out or tried to get there; to be said where a run begins.
    """

    state: dict[str, Tensor]
    notes: list[str]

    def say(self, where: str) -> None:
        for note in self.notes:
            log.info("%s: %s", where, note)


class Fit:
    """The one way from a file of weights to a network, of teachers and students.

    Args:
        own: the network's names and shapes.
        where: the config key and the file, for messages.
        key: of what `reading` holds: teacher, student or teacher.model.
        heads: names of the network's classifier, which may have other classes in the file.
        whole: false: names that are still others are somebody else's to convert.
    """

    def __init__(
        self, reading: WeightsConfig, own: Mapping[str, Tensor], where: str, key: str, heads: Collection[str] = (),
        whole: bool = True,
    ) -> None:  # fmt: skip
        self.reading, self.own, self.where, self.key, self.heads = reading, own, where, key, heads
        self.whole = whole
        self.notes: list[str] = []

    def read(self, path: Path) -> Fitted:
        """The weights of a file that are meant, under the network's names.

        Raises:
            DataError, ConfigError: see `read_entry`; two weights of one name; `drop` or `match` that do not apply.
        """
        found = read_entry(path, self.where, self.reading.entry, self.key)
        self.notes = [] if found.note is None else [found.note]
        state = self._tensors(self._kept(found.values))
        state = self._in_order(state) if self.reading.match == "order" else self._by_name(state)
        return Fitted(state, self.notes)

    def _kept(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Without what is dropped, what is no weight, and what a prefix that was given leaves out."""
        out: dict[Any, Any] = {}
        left: dict[str, list[str]] = {}
        prefix = self.reading.strip_prefix
        selects = prefix and any(isinstance(name, str) and name.startswith(prefix) for name in values)
        for given, value in values.items():
            plain = self._stripped(given)
            part = next((part for part in self.reading.drop if isinstance(plain, str) and begins(plain, part)), None)
            if part is not None:
                left.setdefault(f"{self.key}.drop: {part}", []).append(given)
            elif not isinstance(plain, str) or self._name(plain) in self.own:
                out[given] = value
            elif NO_WEIGHTS.search(plain):
                left.setdefault("no weights", []).append(given)
            elif selects and plain == given:
                left.setdefault(f"without {self.key}.strip_prefix", []).append(given)
            else:
                out[given] = value
        for part in self.reading.drop:
            if not any(why.endswith(f".drop: {part}") for why in left):
                first = next(iter(out), None)
                raise ConfigError(
                    f"{self.key}.drop: {part}: no name in the file begins so, e.g. {first} ({self.where})"
                )
        self.notes += [f"left out {len(names)} ({why}), e.g. {names[0]}" for why, names in left.items()]
        return out

    def _tensors(self, values: Mapping[Any, Any]) -> dict[str, Tensor]:
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                hint = f"; {self.key}.drop leaves it out" if isinstance(name, str) else ""
                got = f"{name!r}: {type(value).__name__}"
                raise DataError(f"{self.where}: expected names and tensors, got {got}{hint}")
        return dict(values)

    def _stripped(self, name: Any) -> Any:
        return name.removeprefix(self.reading.strip_prefix) if isinstance(name, str) else name

    def _name(self, plain: str) -> str:
        """After `rename`, by the first entry that applies."""
        for old, new in self.reading.rename.items():
            if begins(plain, old):
                return re.sub(old, new, plain, count=1) if old.startswith("^") else new + plain[len(old) :]
        return plain

    # ------------------------------------------------------------------------------------------------- by name

    def _by_name(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Under their new names; where no prefix is given, without the usual ones if they fit only so."""
        named = {given: self._name(self._stripped(given)) for given in state}
        if self.reading.strip_prefix or set(named.values()) <= set(self.own):
            return self._under(named, state)
        taken: dict[str, list[str]] = {}
        freed = {given: self._freed(self._stripped(given), taken) for given in state}
        fits = self._complete(set(freed.values())) if self.whole else bool(taken)
        if not fits:
            return self._under(named, state)
        out = self._under(freed, state)
        self.notes += [f"took {prefix} off {len(names)} names, e.g. {names[0]}" for prefix, names in taken.items()]
        return out

    def _freed(self, plain: str, taken: dict[str, list[str]]) -> str:
        """Without as many of the usual prefixes as stand before a name of the network; of others, as it is."""
        rest = plain
        while (name := self._name(rest)) not in self.own:
            prefix = next((prefix for prefix in PREFIXES if rest.startswith(prefix)), None)
            if prefix is None:
                return self._name(plain)
            rest = rest.removeprefix(prefix)
        if rest != plain:
            taken.setdefault(plain.removesuffix(rest), []).append(plain)
        return name

    def _complete(self, names: set[str]) -> bool:
        return names <= set(self.own) and all(name in names or name.endswith(COUNTER) for name in self.own)

    def _under(self, names: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises ConfigError: two weights get one name."""
        came_from: dict[str, str] = {}
        for given, name in names.items():
            if name in came_from:
                raise ConfigError(f"{self.where}: {came_from[name]} and {given} both become {name}; {hint(self.key)}")
            came_from[name] = given
        return {name: state[given] for name, given in came_from.items()}

    # ------------------------------------------------------------------------------------------------ by order

    def _in_order(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Paired with the network's tensors one by one, counters of batches aside.

        Raises:
            ConfigError: another shape or another kind of tensor at some place, or one that is left over.
        """
        theirs, ours = ([name for name in names if not name.endswith(COUNTER)] for names in (state, self.own))
        unfit = f"{self.where}: match=order"
        for place, (given, name) in enumerate(zip(theirs, ours, strict=False), start=1):
            kinds = {part.rpartition(".")[2] for part in (given, name)}
            shapes = [tuple(values[part].shape) for values, part in ((state, given), (self.own, name))]
            loose = name in self.heads and shapes[0][1:] == shapes[1][1:]
            if (shapes[0] != shapes[1] and not loose) or (len(kinds) == 2 and kinds <= set(KINDS)):
                what = f"{given} {shapes[0]} in the file, {name} {shapes[1]} in the network"
                raise ConfigError(f"{unfit}: they differ at place {place}: {what}; see {self.key}.drop and rename")
        if len(theirs) != len(ours):
            over, whose = (theirs, "the file") if len(theirs) > len(ours) else (ours, "the network")
            first = over[min(len(theirs), len(ours))]
            told = f"{len(theirs)} tensors for the network's {len(ours)}; the first left over is {first} of {whose}"
            raise ConfigError(f"{unfit}: {told}; see {self.key}.drop")
        pairs = dict(zip(ours, theirs, strict=True))
        self.notes += ["by order: " + ", ".join(f"{given} -> {name}" for name, given in pairs.items())]
        return {name: state[given] for name, given in pairs.items()}


def hint(key: str) -> str:
    """Where to look when names do not fit."""
    network = f"{key}.model" if key.startswith("teacher") and not key.endswith(".model") else key
    return f"see {key}.strip_prefix, {key}.rename and {network}.args"


def begins(name: str, part: str) -> bool:
    """Whether a pattern applies to a name: a leading part of it, or a regular expression that begins with ^."""
    if part.startswith("^"):
        return re.match(part, name) is not None
    return name == part or name.startswith(f"{part}.")
