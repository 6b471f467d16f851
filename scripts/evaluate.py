"""Evaluate a finished run again, without training; into <run>/evaluations/<name>.json, the record stays as it is.

python scripts/evaluate.py run=outputs/runs/...                         today's metrics, from its kept predictions
python scripts/evaluate.py run=... amend=true                            and into its record what that does not have yet
python scripts/evaluate.py run=... dataset=svhn dataset.root=data        its networks on other test images
python scripts/evaluate.py run=... evaluate.corruptions=CIFAR-10-C       on corrupted ones
python scripts/evaluate.py run=... evaluate.sets=[imagenet_v2] evaluate.root=data
python scripts/evaluate.py run=... method.<key>=<value> name=half        with another setting of the method; what it
                                                                         searches, it searches on validation images
python scripts/evaluate.py run=... dataset=svhn execution.device=cuda
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.evaluate", __doc__)
