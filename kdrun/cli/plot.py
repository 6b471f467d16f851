"""Draw pictures of finished runs and of tables, as PNG and SVG.

kdrun plot reliability run=outputs/runs/...          accuracy by confidence; the teacher beside the student
kdrun plot confusion run=outputs/runs/...            what images of each class are taken for
kdrun plot coverage run=... split=val                error among the images that it is surest of
kdrun plot curves table=demo metric=test/top1        learning curves, mean and range over seeds; or run=...
kdrun plot confidence table=demo                     mean confidence against accuracy, a point a run
kdrun plot tradeoff table=mixup_kd_temperature       accuracy against ECE along the rows, a line a column
kdrun plot images dataset=imagefolder dataset.path=photos dataset.test_fraction=0.2    what one trains on
kdrun plot tradeoff table=... x=nll out=figure.svg   another place; .png or .svg
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdrun.cli.command import dispatch
from kdrun.cli.own import own_conf
from kdrun.config.compose import Composer
from kdrun.core.errors import ConfigError, allowed
from kdrun.core.later import later
from kdrun.core.schema import from_arguments
from kdrun.results.plots.options import KINDS, Sheet

if TYPE_CHECKING:
    from kdrun.results.plots.images import report as contact_sheet
else:
    contact_sheet = later("kdrun.results.plots.images", "report")


@own_conf
def main(arguments: Sequence[str]) -> str:
    """What was written for `<kind> key=value ...`.

    Raises:
        ConfigError: an unknown kind or key, or a value that is not allowed.
        KdrunError: a directory that is no finished run, or nothing to draw.
    """
    if arguments and arguments[0] == "images":
        return _images(arguments[1:])
    if arguments and arguments[0] not in KINDS:
        raise ConfigError(f"{arguments[0]}: not a picture{allowed(arguments[0], [*KINDS, 'images'])}")
    return dispatch("kdrun.results.plots", KINDS, "a picture", arguments)


def _images(arguments: Sequence[str]) -> str:
    """Of a dataset, which the words that begin with it say as those of a run do."""
    words = [word for word in arguments if word.partition("=")[0].partition(".")[0] in ("dataset", "plugins")]
    options = from_arguments(Sheet, [word for word in arguments if word not in words])
    if not any(word.startswith("dataset=") for word in words):
        raise ConfigError("dataset: missing; e.g. dataset=imagefolder dataset.path=photos dataset.test_fraction=0.2")
    with Composer() as composer:
        # a method that asks for both pools, or `dataset.unlabeled` would have no effect
        config = composer.typed([*words, "method=fixmatch", "loss=ce", "teacher=none", "tracker=none"])
    return contact_sheet(options, config.dataset)
