"""Fetch what runs need before they run, where there is a network: data sets and published weights.

python scripts/download.py experiment=fixmatch/cifar10_250      what the composed run needs, and what is required first
python scripts/download.py dataset=food101,dtd student=timm student.name=resnet18 student.pretrained=true
python scripts/download.py table=ttm_same                       what the runs of conf/table/ttm_same.yaml need
python scripts/download.py experiment=demo dry=true             list only

Lists everything first: present, missing, or to be put there by hand. What is complete is not fetched again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.download", __doc__)
