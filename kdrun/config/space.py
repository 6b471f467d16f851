"""What is searched over: keys and their values, as overrides say it (`choice`, `range`, `interval`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from kdrun.core.errors import ConfigError

BASES = (2, 3, 5, 7, 11, 13)


@dataclass(frozen=True)
class Dimension:
    """A key that is searched over.

    Args:
        choices: its values as texts; empty: numbers from `low` to `high`.
        step: between whole numbers or numbers; None: all between them.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    @classmethod
    def of(cls, override: Override) -> "Dimension":
        """Raises ConfigError: no range of numbers, and no choice."""
        key, value = override.get_key_element(), override.value()
        if not override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: one value; write {key}=choice(...), range(...) or interval(...)")
        if isinstance(value, IntervalSweep):
            low, high, step = value.start, value.end, None
        elif isinstance(value, RangeSweep):
            steps = list(value.range())
            low, high, step = (steps[0], steps[-1], value.step) if steps else (1, 0, None)
        else:
            return cls(key, tuple(dict.fromkeys(override.sweep_string_iterator())))
        if low is None or high is None or low > high:
            raise ConfigError(f"{key}: {override.input_line}: the first number must be the smaller one")
        logarithmic = "log" in value.tags
        if logarithmic and (low <= 0 or step not in (None, 1)):
            raise ConfigError(f"{key}: {override.input_line}: a logarithmic range starts above 0 and has no step")
        return cls(key, low=low, high=high, step=None if logarithmic else step, log=logarithmic)

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole ones."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def first(self) -> str:
        """One of its values, as an override."""
        return self.override(self.choices[0] if self.choices else self.low)

    def override(self, value: str | float) -> str:
        """A value of it; of a number that is no whole one three digits."""
        if self.choices:
            return f"{self.key}={value}"
        return f"{self.key}={round(float(value)) if self.whole else float(f'{float(value):.3g}')}"

    def at(self, share: float) -> str:
        """The value that lies so far up, as an override.

        Args:
            share: in [0, 1).
        """
        if self.choices:
            return self.override(self.choices[int(share * len(self.choices))])
        step = (self.step or 1) if self.whole else self.step
        if step is not None and not self.log:
            value: float = self.low + step * int(share * (round((self.high - self.low) / step) + 1))
        elif self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return self.override(value)


def parsed(words: Sequence[str]) -> list[Override]:
    """Raises ConfigError: the first that is no override."""
    parser, found = OverridesParser.create(), []
    for word in words:
        try:
            found.append(parser.parse_override(word))
        except HydraException as error:
            raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from None
    return found


def spread(dimensions: Sequence[Dimension], count: int) -> list[list[str]]:
    """So many candidates, evenly over the space, the same ones each time: the first points of Halton's sequence
    (Numerische Mathematik 2, 1960), one prime base for each dimension.

    Raises:
        ConfigError: more dimensions than it covers evenly, or fewer different candidates than asked for.
    """
    if len(dimensions) > len(BASES):
        raise ConfigError(f"{len(dimensions)} keys; {len(BASES)} at most")
    bases = BASES[: len(dimensions)]
    found = [
        [dimension.at(_inverse(k, base)) for dimension, base in zip(dimensions, bases, strict=True)]
        for k in range(1, count + 1)
    ]
    different = len(set(map(tuple, found)))
    if different < count:
        raise ConfigError(f"{count} trials, and the space has {different} that differ; list them, or take fewer")
    return found


def _inverse(number: int, base: int) -> float:
    """The digits of a number behind the point, in reverse."""
    value, unit = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        unit /= base
        value += digit * unit
    return value
