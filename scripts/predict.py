"""Classify image files by a finished run: a CSV with class, confidence, calibrated confidence and the next classes.

python scripts/predict.py run=outputs/runs/... images=photos                  any folder, nested; into predictions.csv
python scripts/predict.py run=0123456789ab images=photo.jpg out=photo.csv     a run by its key; top=5 classes
python scripts/predict.py run=... images=photos skip_unreadable=true          leaves out what cannot be decoded
python scripts/predict.py run=... images=photos predictor=ensemble batch=256 device=cuda threads=4
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.predict", __doc__)
