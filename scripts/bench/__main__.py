"""Speed of the loop beside the bare step, and of the parts around it, measured in one process, alternating.

python -m scripts.bench                 everything
python -m scripts.bench loop views      some of it
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # also where this is run as `python scripts/bench`

BENCHES = {
    "start": "start", "views": "views", "step": "step", "students": "students", "losses": "losses",
    "metrics": "metrics", "memory": "memory", "sweep": "sweep", "data": "data", "dho": "dho", "tables": "tables",
    "engines": "engines", "scheduler": "engines",
}  # fmt: skip
"""Name -> the file that has its `bench_<name>`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help=f"any of {', '.join(BENCHES)}; default: all")
    chosen = parser.parse_args().which or list(BENCHES)
    if unknown := [name for name in chosen if name not in BENCHES]:
        parser.error(f"unknown bench {unknown[0]!r}; allowed: {', '.join(BENCHES)}")
    import torch

    from scripts.bench.harness import rounds

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds()} rounds; min, median, max")
    for name in chosen:
        getattr(importlib.import_module(f"scripts.bench.{BENCHES[name]}"), f"bench_{name}")()


if __name__ == "__main__":
    main()
