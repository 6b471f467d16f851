"""Print a table of mean ± std over seeds from the records.

python scripts/table.py                          every run below outputs/
python scripts/table.py table=demo               the plan of conf/table/demo.yaml, missing seeds shown
python scripts/table.py table=demo metric=test/ece format=markdown outputs=outputs protocol=best_on_val
python scripts/table.py table=kd_fixmatch_digits metric=train/mask_rate curve=8        over training, at some steps
python scripts/table.py table=kd_fixmatch_digits metric=trusted_label/precision        a figure of an artifact
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.command import launch

if __name__ == "__main__":
    launch("kdrun.tables", __doc__)
