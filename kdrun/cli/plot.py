"""Pictures of finished runs and of tables. Each kind is a module with `Options` and `report`."""

from collections.abc import Sequence

from kdrun.cli.command import dispatch

KINDS = ("confidence", "coverage", "curves", "reliability", "tradeoff")


def main(arguments: Sequence[str]) -> str:
    """What was written for `<kind> key=value ...`.

    Raises:
        ConfigError: an unknown kind or key, or a value that is not allowed.
        KdrunError: a directory that is no finished run, or nothing to draw.
    """
    return dispatch("kdrun.results.plots", KINDS, "a picture", arguments)
