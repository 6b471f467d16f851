"""All runs below outputs/, from their records alone.

python scripts/status.py
python scripts/status.py dataset.name=digits loss.kd.temperature=4      any key of the configuration filters
python scripts/status.py status=failed                                  with the end of what they said
python scripts/status.py sort=seconds reverse=true limit=20 metric=test/ece outputs=outputs
status: done, running, stopped, failed; sort: path, seconds, metric, seed, status
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.status", __doc__)
