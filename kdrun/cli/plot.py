"""Draw pictures of finished runs and of tables, as PNG and SVG.

kdrun plot reliability run=outputs/runs/...          accuracy by confidence; the teacher beside the student
kdrun plot coverage run=... split=val                error among the images that it is surest of
kdrun plot curves table=demo metric=test/top1        learning curves, mean and range over seeds; or run=...
kdrun plot confidence table=demo                     mean confidence against accuracy, a point a run
kdrun plot tradeoff table=mixup_kd_temperature       accuracy against ECE along the rows, a line a column
kdrun plot tradeoff table=... x=nll out=figure.svg   another place; .png or .svg
"""

from collections.abc import Sequence

from kdrun.cli.command import dispatch
from kdrun.results.plots.options import KINDS


def main(arguments: Sequence[str]) -> str:
    """What was written for `<kind> key=value ...`.

    Raises:
        ConfigError: an unknown kind or key, or a value that is not allowed.
        KdrunError: a directory that is no finished run, or nothing to draw.
    """
    return dispatch("kdrun.results.plots", KINDS, "a picture", arguments)
