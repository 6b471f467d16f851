"""Records and tables into outputs/published/<table>, and the README's block between its markers.

python scripts/publish.py table=demo                           from outputs/runs
python scripts/publish.py table=demo metric=test/top1 metric=test/ece outputs=outputs
python scripts/publish.py table=demo check=true                made again from the published records; exit 1: changed
python scripts/publish.py check=true                           all published tables that have a table.json
Markers: <!-- table demo --> and <!-- /table demo --> in the README, <!-- tables --> and <!-- /tables --> in table.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.command import launch

if __name__ == "__main__":
    launch("kdrun.publishing", __doc__)
