"""Print a table of mean ± std over seeds from the records, plan it, make what is missing, hold it against its paper.

python scripts/table.py                          every run below outputs/
python scripts/table.py table=demo               the plan of conf/table/demo.yaml, missing seeds shown
python scripts/table.py table=demo plan=true     what is done, needed first, missing, and about how long it will take
python scripts/table.py table=demo dry=true      with the commands that make what is missing
python scripts/table.py table=demo execute=true  makes it; override=execution.threads=1, override=hydra/launcher=joblib
python scripts/table.py table=demo metric=test/ece format=markdown outputs=outputs protocol=best_on_val
python scripts/table.py table=demo format=html   a report, outputs/reports/demo.html; also latex, csv, json; out=
python scripts/table.py table=demo spread=minmax columns=params,flops,seconds,images_per_second,teacher,test/ece
python scripts/table.py table=demo compare=KD,CE                the same seeds, paired
python scripts/table.py table=kd_fixmatch_digits metric=train/mask_rate curve=8        over training, at some steps
python scripts/table.py table=kd_fixmatch_digits metric=trusted_label/precision        a figure of an artifact
protocol: last, best_on_val, median20 (the median of the last 20 evaluations)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.results.fill", __doc__)
