"""Records and tables into outputs/published/<table>, and the README's block between its markers.

python scripts/publish.py table=demo                           from outputs/runs
python scripts/publish.py table=demo metric=test/top1 metric=test/ece columns=params,flops outputs=outputs
python scripts/publish.py table=kd_fixmatch_digits metric=test/top1 curve=train/mask_rate:8    over training too
python scripts/publish.py table=ttm_cifar100_short override=dataset.verify_md5=false           as the runs were made
python scripts/publish.py table=demo again=true                the texts anew from the published records, no runs
python scripts/publish.py check=true                           all published tables; exit 1: `again` would change one
python scripts/publish.py table=demo check=true compose=true   and whether conf/ still plans these very runs
Markers: <!-- table demo --> and <!-- /table demo --> in the README, <!-- tables --> and <!-- /tables --> in table.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.publish", __doc__)
