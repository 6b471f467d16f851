"""The losses of the first 20 steps, held against a file: a change here is a change of every user's results.

Remake after a deliberate change: python -m tests.golden.test_losses [CASE ...], by default all cases.
"""

import json
import sys
from pathlib import Path

import pytest

from kdrun.core.registry import lookup
from kdrun.methods.semi_supervised import SemiSupervised
from tests.contract.test_methods import METHODS, OF_SEVERAL, SEVERAL, VITS, fit, make

# With pseudo labels rounding grows a thousandfold faster; small steps keep it down.
CALM = {name: ["schedule.lr=0.001"] for name in METHODS if issubclass(lookup("method", name, ""), SemiSupervised)}
FILE = Path(__file__).parent / "losses.json"
# beside wttm, which is distill's own here
LOSSES = ["kd", "ttm", "dkd", "dist", "nkd", "kd_zscore", "wttm_noce", "ctkd", "rld", "cwtm", "dkpp"]
PEERS = {
    "peer_distill loss=wttm": ["peer_distill", "loss=wttm", "method.peer_target=sum", "method.normalize_weights=true"]
}
FEATURE_LOSSES = [
    "fitnet", "at", "rkd", "pkt", "vid", "crd", "itrd", "wttm_crd", "wttm_itrd", "srrl", "reviewkd", "nd", "wkd",
    "sp", "cc", "nst", "ickd", "ab", "ofd", "catkd", "diffkd",
]  # fmt: skip
AS_WIDE = ["fsp", "kdsvd"]
CASES = {
    **{name: [name, *CALM.get(name, [])] for name in METHODS},
    **{f"distill loss={loss}": ["distill", f"loss={loss}"] for loss in LOSSES},
    **{f"distill loss={loss}": ["distill", f"loss={loss}", "schedule.lr=0.001"] for loss in FEATURE_LOSSES},
    "distill loss=vitkd": ["distill", "loss=vitkd", *VITS, "schedule.lr=0.001"],
    **{
        f"distill loss={loss}": ["distill", f"loss={loss}", "schedule.lr=0.001", "student.args.width=16"]
        for loss in AS_WIDE
    },
    "distill loss=mlkd": ["distill", "loss=mlkd", "method.views=[weak,strong]"],
    **{f"sho loss={loss}": ["sho", f"loss={loss}", *SEVERAL] for loss in OF_SEVERAL},
    **PEERS,
    "supervised loss=evidential": ["supervised", "loss=evidential"],
    "supervised loss=byot": ["supervised", "loss=byot"],
    "mixup_distill views.mix.kind=cutmix": ["mixup_distill", "views.mix.kind=cutmix", "views.mix.per=batch"],
}


def first_20(case: str) -> list[float]:
    return fit(*make(*CASES[case])[:3], 0, 20)


@pytest.mark.parametrize("case", CASES)
def test_first_20_losses(case):
    golden = json.loads(FILE.read_text())
    if case not in golden:
        pytest.fail(f"losses.json has no losses of {case!r}; make them: python -m tests.golden.test_losses {case!r}")
    # Rounding differs between processors; 20 steps amplify it little.
    assert first_20(case) == pytest.approx(golden[case], rel=5e-3)


if __name__ == "__main__":
    old = json.loads(FILE.read_text())
    made = {case: first_20(case) for case in sys.argv[1:] or CASES}
    FILE.write_text(json.dumps({case: (old | made)[case] for case in CASES if case in old | made}, indent=1) + "\n")
