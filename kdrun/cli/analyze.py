"""Look into finished runs: teachers, what lies between images, features, calibration.

kdrun analyze teacher run=outputs/runs/...      entropy deciles of the teacher against its accuracy
kdrun analyze teacher run=... run=... split=val
kdrun analyze vicinal run=...               between images: linearity, entropy, class similarity, alignment;
                                            into <run>/analysis and, as vicinal/<net>/..., into the record
kdrun analyze vicinal run=... split=test batches=100 batch_size=256 seed=0
kdrun analyze linear_probe run=...      a linear classifier on the student's features: top-1 and top-5; into
                                        <run>/analysis and, as linear_probe/<net>/..., into the record
kdrun analyze linear_probe run=... labels=labeled net=student c=0.1 c=1      on the run's own labels alone
kdrun analyze propagation table=mixup_kd_propagation     a student's confidence gap on its teacher's: slope,
                                            interval, correlation, and a picture in outputs/figures
"""

from collections.abc import Sequence

from kdrun.cli.command import dispatch
from kdrun.results.analysis.options import KINDS


def main(arguments: Sequence[str]) -> str:
    """The text of `<analysis> key=value ...`.

    Raises:
        ConfigError: an unknown analysis or key, or a value that is not allowed.
        KdrunError: a directory that is no finished run, or a run that the analysis cannot be made of.
    """
    return dispatch("kdrun.results.analysis", KINDS, "an analysis", arguments)
