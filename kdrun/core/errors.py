"""Errors that a user can act on: one line that says what is wrong, where, and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches

from hydra.errors import CompactHydraException

from kdrun.core.failure import Held, KdrunError, LockLost

__all__ = [
    "ConfigError", "DataError", "Held", "KdrunError", "LockLost", "NonFiniteLoss", "Unfinished", "allowed",
]  # fmt: skip


class ConfigError(KdrunError, CompactHydraException):
    """A configuration that cannot run. `lines` holds every problem that was found, one line each."""

    def __init__(self, *lines: str) -> None:
        self.lines = [" ".join(line.split()) for line in lines]
        super().__init__("\n".join(self.lines))


class MissingFile(ConfigError):
    """A file or folder that a run key has the content of, and that is not there.

    Args:
        file: its path, as it was given.
    """

    def __init__(self, *lines: str, file: str) -> None:
        self.file = file
        super().__init__(*lines)


class DataError(ConfigError):
    """A data file that is missing, damaged or not what it should be."""


class NonFiniteLoss(KdrunError):
    """A loss term, a weight or a final figure became NaN or infinite in training."""


class Unfinished(KdrunError):
    """What was asked for is done only in part, or did not come out as it should: exit code 1, not 2.

    Args:
        text: what is printed nevertheless.
        lines: what is wrong, one line each.
    """

    def __init__(self, text: str, *lines: str) -> None:
        self.text = text
        super().__init__("\n".join(lines))


def allowed(value: object, names: Iterable[str], most: int = 12) -> str:
    """What follows an unknown name: `; nearest: kd (allowed: ce, kd, ttm, wttm)`, or ` (allowed: ...)`."""
    names = sorted(names)
    close = get_close_matches(str(value), names, n=1, cutoff=0.5)
    nearest = f"; nearest: {close[0]}" if close else ""
    if not most:
        return nearest or f"; none of {len(names)} names is near"
    listed = ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")
    return f"{nearest} (allowed: {listed or 'nothing'})"
