"""Print what the loss of a run is: equations, sources, coefficients and where each came from. Trains nothing.

python scripts/explain.py loss=wttm                            what `python -m kdrun.train loss=wttm` would minimise
python scripts/explain.py experiment=demo loss=wttm loss.wttm.gamma=0.3
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.explain", __doc__)
