"""Pictures of finished runs and of tables. Each kind is a module with `Options` and `report`."""

from collections.abc import Sequence
from importlib import import_module

from kdrun.errors import ConfigError, allowed
from kdrun.schema import from_arguments

KINDS = ("confidence", "coverage", "curves", "reliability", "tradeoff")


def main(arguments: Sequence[str]) -> str:
    """What was written for `<kind> key=value ...`.

    Raises:
        ConfigError: an unknown kind or key, or a value that is not allowed.
        KdrunError: a directory that is no finished run, or nothing to draw.
    """
    what, *rest = arguments or [""]
    if what not in KINDS:
        raise ConfigError(f"{what or 'command line'}: not a picture; {allowed(what, KINDS)}")
    kind = import_module(f"kdrun.plots.{what}")
    text: str = kind.report(from_arguments(kind.Options, rest))
    return text
