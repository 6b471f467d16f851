"""Analyses of finished runs: what the numbers of a table do not tell. Each is a module with `Options` and `report`."""

from collections.abc import Sequence
from importlib import import_module

from kdrun.errors import ConfigError, allowed
from kdrun.schema import from_arguments

ANALYSES = ("propagation", "teacher", "vicinal")


def main(arguments: Sequence[str]) -> str:
    """The text of `<analysis> key=value ...`.

    Raises:
        ConfigError: an unknown analysis or key, or a value that is not allowed.
        KdrunError: a directory that is no finished run, or a run that the analysis cannot be made of.
    """
    what, *rest = arguments or [""]
    if what not in ANALYSES:
        raise ConfigError(f"{what or 'command line'}: not an analysis; {allowed(what, ANALYSES)}")
    analysis = import_module(f"kdrun.analysis.{what}")
    text: str = analysis.report(from_arguments(analysis.Options, rest))
    return text
