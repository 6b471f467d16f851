"""Analyses of finished runs: what the numbers of a table do not tell. Each is a module with `Options` and `report`."""

from collections.abc import Sequence

from kdrun.cli.command import dispatch

ANALYSES = ("linear_probe", "propagation", "teacher", "vicinal")


def main(arguments: Sequence[str]) -> str:
    """The text of `<analysis> key=value ...`.

    Raises:
        ConfigError: an unknown analysis or key, or a value that is not allowed.
        KdrunError: a directory that is no finished run, or a run that the analysis cannot be made of.
    """
    return dispatch("kdrun.results.analysis", ANALYSES, "an analysis", arguments)
