"""Two finished runs side by side: configuration, metrics, and the images that they see differently.

python scripts/compare.py run=outputs/runs/... run=outputs/runs/...
python scripts/compare.py run=... run=... split=val net=student show=20
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.compare", __doc__)
