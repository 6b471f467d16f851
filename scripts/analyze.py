"""Look into finished runs.

python scripts/analyze.py teacher run=outputs/runs/...      entropy deciles of the teacher against its accuracy
python scripts/analyze.py teacher run=... run=... split=val
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.command import launch

if __name__ == "__main__":
    launch("kdrun.analysis", __doc__)
