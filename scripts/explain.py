"""Print what the loss of a run is: equations, sources, coefficients and where each came from. Trains nothing.

python scripts/explain.py loss=wttm                            what `python -m kdrun.train loss=wttm` would minimise
python scripts/explain.py experiment=demo loss=wttm loss.wttm.gamma=0.3
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.errors import KdrunError
from kdrun.explain import main

if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit(0)
    try:
        print(main(sys.argv[1:]))
    except KdrunError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
