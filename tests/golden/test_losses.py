"""The losses of the first 20 steps, held against a file: a change here is a change of every user's results.

Remake after a deliberate change: python -m tests.golden.test_losses
"""

import json
from pathlib import Path

import pytest

from tests.contract.test_methods import METHODS, fit, make

# With pseudo labels rounding grows a thousandfold faster; small steps keep it down.
CALM = {"fixmatch": ["schedule.lr=0.001"], "kd_fixmatch": ["schedule.lr=0.001"]}
TERMS = ["fitnet", "at", "rkd", "pkt", "vid", "crd", "itrd", "wttm_crd", "wttm_itrd"]  # of method=distill
CASES = {name: (name, CALM.get(name, [])) for name in METHODS}
CASES |= {f"loss={term}": ("distill", [f"loss={term}", "schedule.lr=0.001"]) for term in TERMS}
FILE = Path(__file__).parent / "losses.json"


def losses(name: str) -> list[float]:
    method, overrides = CASES[name]
    return fit(*make(method, *overrides)[:3], 0, 20)


@pytest.mark.parametrize("name", CASES)
def test_first_20_losses(name):
    golden = json.loads(FILE.read_text())
    # Rounding differs between processors; 20 steps amplify it little.
    assert losses(name) == pytest.approx(golden[name], rel=5e-3)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: losses(name) for name in CASES}, indent=1) + "\n")
