"""Weights that move: factors at a share of the run, and what the adaptive ones remember."""

import pytest

from kdrun.config.schedule import RampConfig
from kdrun.core.schema import build
from kdrun.training.rates import Ramps

KEY = "loss.kd.weight"


def ramps(**keys) -> Ramps:
    return Ramps({"a": build(RampConfig, {"key": KEY, **keys}, "ramps.a")})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"start": 0.0, "end": 2.0}, {0.0: 0, 0.25: 0.5, 0.5: 1, 1.0: 2}),
        (
            {"start": 1.0, "end": 0.0, "from_progress": 0.2, "until_progress": 0.6},
            {0.0: 1, 0.2: 1, 0.4: 0.5, 0.6: 0, 1.0: 0},
        ),
        ({"kind": "cosine", "start": 0.0, "end": 1.0}, {0.0: 0, 0.25: 0.146447, 0.5: 0.5, 1.0: 1}),
        ({"kind": "step", "end": 3.0, "until_progress": 0.5}, {0.0: 1, 0.499: 1, 0.5: 3, 1.0: 3}),
    ],
    ids=["linear", "part of the run", "cosine", "step"],
)
def test_factors(keys, expected):
    made = ramps(**keys)
    for progress, factor in expected.items():
        assert made.factors(progress) == {KEY: pytest.approx(factor, abs=1e-6)}


def test_adaptive_moves_where_validation_stands_still_and_resumes():
    made = ramps(kind="adaptive", start=1.0, end=0.0, patience=1, rate=0.5)
    factors = []
    for score in (0.5, 0.6, 0.6, 0.5, 0.7, 0.6, 0.6, 0.6, 0.6):
        made.observe(score)
        factors.append(made.factors(0.3)[KEY])
        again = ramps(kind="adaptive", start=1.0, end=0.0, patience=1, rate=0.5)
        again.load_state_dict(made.state_dict())
        made = again
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_only_adaptive_ramps_have_a_state():
    made = ramps(end=0.0)
    made.observe(0.5)
    assert made.state_dict() == {}
