"""Pictures of finished runs and of tables, as PNG and SVG.

python scripts/plot.py reliability run=outputs/runs/...          accuracy by confidence; the teacher beside the student
python scripts/plot.py coverage run=... split=val                error among the images that it is surest of
python scripts/plot.py curves table=demo metric=test/top1        learning curves, mean and range over seeds; or run=...
python scripts/plot.py confidence table=demo                     mean confidence against accuracy, a point a run
python scripts/plot.py tradeoff table=mixup_kd_temperature       accuracy against ECE along the rows, a line a column
python scripts/plot.py tradeoff table=... x=nll out=figure.svg   another place; .png or .svg
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.plot", __doc__)
