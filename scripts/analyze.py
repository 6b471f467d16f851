"""Look into finished runs.

python scripts/analyze.py teacher run=outputs/runs/...      entropy deciles of the teacher against its accuracy
python scripts/analyze.py teacher run=... run=... split=val
python scripts/analyze.py vicinal run=...               between images: linearity, entropy, class similarity, alignment;
                                                        into <run>/analysis and, as vicinal/<net>/..., into the record
python scripts/analyze.py vicinal run=... split=test batches=100 batch_size=256 seed=0
python scripts/analyze.py linear_probe run=...      a linear classifier on the student's features: top-1 and top-5; into
                                                    <run>/analysis and, as linear_probe/<net>/..., into the record
python scripts/analyze.py linear_probe run=... labels=labeled net=student c=0.1 c=1      on the run's own labels alone
python scripts/analyze.py propagation table=mixup_kd_propagation     a student's confidence gap on its teacher's: slope,
                                                        interval, correlation, and a picture in outputs/figures
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.analyze", __doc__)
