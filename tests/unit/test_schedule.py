"""Learning rates against values computed by hand and against torch's own plateau scheduler."""

import json
import math
import random

import pytest
import timm
import torch
from torch import nn

from kdrun.config.schedule import Clock, ScheduleConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.training.optimizer import without_decay
from kdrun.training.rates import LearningRate
from tests.each import each


def schedule(decay=None, **keys):
    node = {"steps": 100, **keys}
    if decay is not None:
        node["decay"] = build(lookup("decay", decay["name"], "schedule.decay.name").Config, decay, "schedule.decay")
    return build(ScheduleConfig, node, "schedule")


def rate(decay, num_labeled=6400, **keys):
    config = schedule(decay, **keys)
    return LearningRate(config, config.clock(num_labeled))


def factors(rate, steps):
    return [rate.factor(step) for step in steps]


def test_constant():
    assert factors(rate({"name": "constant"}), [0, 50, 99]) == [1, 1, 1]


def test_fixmatch_cosine():
    made = rate({"name": "fixmatch"}, steps=2**20)
    expected = [1, math.cos(7 * math.pi * 2**18 / (16 * 2**20)), math.cos(7 * math.pi / 32), 0.19509032201612825]
    assert factors(made, [0, 2**18, 2**19, 2**20]) == pytest.approx(expected, abs=1e-12)
    assert 0.19509 < made.factor(2**20 - 1) < 0.1951


def test_cosine():
    made = rate({"name": "cosine", "final": 0.1})
    quarter = 0.1 + 0.45 * (1 + math.sqrt(0.5))
    assert factors(made, [0, 25, 50, 100, 150]) == pytest.approx([1, quarter, 0.55, 0.1, 0.1])
    assert rate({"name": "cosine"}).factor(100) == pytest.approx(0, abs=1e-12)


def test_cosine_starts_after_the_warmup():
    made = rate({"name": "cosine"}, steps=110, warmup_steps=10)
    assert factors(made, [5, 10, 60]) == pytest.approx([0.5, 1, 0.5])


def test_linear():
    made = rate({"name": "linear", "final": 0.2})
    assert factors(made, [0, 50, 75, 100, 101]) == pytest.approx([1, 0.6, 0.4, 0.2, 0.2])


def test_step_milestones_in_steps():
    made = rate({"name": "step", "milestones_steps": [10, 20], "gamma": 0.5})
    assert factors(made, [0, 9, 10, 19, 20, 99]) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_step_milestones_in_fractional_epochs():
    made = rate({"name": "step", "milestones_epochs": [1, 2.5], "gamma": 0.1}, num_labeled=100, batch_size=32)
    assert factors(made, [2, 3, 7, 8]) == pytest.approx([1, 0.1, 0.1, 0.01])


def test_literature_recipe_drops_after_epochs_150_180_210():
    decay = {"name": "step", "milestones_epochs": [150, 180, 210], "gamma": 0.1}
    made = rate(decay, num_labeled=50_000, steps=None, epochs=240)
    first_of = {epoch: (epoch - 1) * 50_000 / 64 for epoch in (150, 151, 181, 211)}
    steps = [math.ceil(step) for step in first_of.values()]
    assert factors(made, steps) == pytest.approx([1, 0.1, 0.01, 0.001])


def test_segments_in_steps_and_epochs():
    decay = {
        "name": "segments",
        "segments": [
            {"until_steps": 10, "start": 0.0, "end": 1.0},
            {"until_epochs": 4, "start": 1.0, "end": 0.5, "shape": "cosine"},
            {"until_steps": 30, "start": 0.3, "end": 0.3},
        ],
    }
    made = rate(decay, num_labeled=320)
    assert factors(made, [0, 5, 10, 15, 20, 29, 30, 99]) == pytest.approx([0, 0.5, 1, 0.75, 0.3, 0.3, 0.3, 0.3])
    assert made.factor(12) == pytest.approx(1 - 0.5 * (1 - math.cos(0.2 * math.pi)) / 2)


def test_warmup_multiplies_the_decay():
    made = rate({"name": "step", "milestones_steps": [2], "gamma": 0.5}, warmup_steps=4, warmup_from=0.2)
    assert factors(made, range(6)) == pytest.approx([0.2, 0.4, 0.3, 0.4, 0.5, 0.5])


def test_warmup_in_epochs():
    made = rate({"name": "constant"}, num_labeled=320, warmup_epochs=2)
    assert factors(made, [0, 5, 9, 10]) == pytest.approx([0, 0.5, 0.9, 1])


def test_no_warmup_starts_at_the_full_rate():
    for keys in ({}, {"warmup_steps": 0}, {"warmup_epochs": 0.0}):
        assert rate({"name": "constant"}, **keys).factor(0) == 1


def test_plateau_follows_torch():
    reference_lr = torch.nn.Parameter(torch.zeros(1))
    for seed in range(20):
        rng = random.Random(seed)
        patience, threshold = rng.randrange(4), rng.choice([0.0, 0.05])
        optimizer = torch.optim.SGD([reference_lr], lr=1.0)
        reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.5, patience=patience, threshold=threshold, threshold_mode="abs",
            min_lr=0.02, eps=0,
        )  # fmt: skip
        decay = {"name": "plateau", "gamma": 0.5, "patience": patience, "threshold": threshold, "min_factor": 0.02}
        made = rate(decay)
        for step in range(60):
            value = round(rng.random(), 2)
            made.decay.observe(value)
            reference.step(value)
            assert made.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_by_hand():
    made = rate({"name": "plateau", "gamma": 0.1, "patience": 2, "min_factor": 0.05})
    seen = []
    for value in [0.5, 0.5, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6]:
        made.decay.observe(value)
        seen.append(made.factor(0))
    assert seen == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.05])


def test_plateau_state_round_trip():
    decay = {"name": "plateau", "gamma": 0.5, "patience": 1}
    values = [0.3, 0.2, 0.1, 0.3, 0.3, 0.4, 0.4, 0.2]
    for cut in range(len(values)):
        whole, first, second = (rate(decay) for _ in range(3))
        for value in values:
            whole.decay.observe(value)
        for value in values[:cut]:
            first.decay.observe(value)
        state = json.loads(json.dumps(first.decay.state_dict()))
        second.decay.load_state_dict(state)
        assert second.factor(0) == first.factor(0)
        for value in values[cut:]:
            second.decay.observe(value)
        assert second.factor(0) == whole.factor(0)
        assert second.decay.state_dict() == whole.decay.state_dict()


def test_state_dict_is_a_copy():
    made = rate({"name": "plateau"})
    state = made.decay.state_dict()
    made.decay.observe(0.5)
    assert state["best"] is None


@pytest.mark.parametrize(
    ("keys", "num_labeled", "expected"),
    [
        ({"steps": 300}, 100, Clock(100 / 64, 300)),
        ({"steps": None, "epochs": 2, "batch_size": 32}, 100, Clock(3.125, 6)),
        ({"steps": None, "epochs": 10, "batch_size": 64}, 40, Clock(0.625, 6)),
        ({"steps": None, "epochs": 0.1, "batch_size": 64}, 64, Clock(1.0, 1)),
    ],
)
def test_clock(keys, num_labeled, expected):
    assert schedule(**keys).clock(num_labeled) == expected


def test_clock_translates_durations():
    clock = Clock(3.125, 100)
    assert clock.steps(7, None) == 7
    assert clock.steps(None, 2.0) == 6
    assert clock.steps(None, None) is None
    assert clock.steps(0, None) == 0


REFUSED = {
    "steps and epochs": {"epochs": 3},
    "neither steps nor epochs": {"steps": None},
    "no steps": {"steps": 0},
    "steps as text": {"steps": "100"},
    "fractional steps": {"steps": 1.5},
    "two warm-ups": {"warmup_steps": 3, "warmup_epochs": 1},
    "two cadences": {"eval_every_steps": 3, "eval_every_epochs": 1},
    "nesterov alone": {"nesterov": True, "momentum": 0.0},
    "negative lr": {"lr": -0.1},
    "negative lr of a student": {"lr_for": {"resnet20": -0.1}},
    "infinite lr": {"lr": math.inf},
    "unknown key": {"learning_rate": 0.1},
    "unknown scope": {"weight_decay_on": "some"},
    "ema of one": {"ema_decay": 1.0},
    "empty batch": {"batch_size": 0},
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_schedule_is_refused(case):
    with pytest.raises(ConfigError, match="schedule"):
        schedule(**REFUSED[case])


def segment(**keys):
    return {"name": "segments", "segments": [{"start": 1.0, "end": 0.5, **keys}]}


REFUSED_DECAYS = {
    "unknown": {"name": "cosin"},
    "unknown key": {"name": "cosine", "end": 0.1},
    "final above one": {"name": "cosine", "final": 1.5},
    "two units of milestones": {"name": "step", "milestones_steps": [1], "milestones_epochs": [1.0]},
    "no milestones": {"name": "step"},
    "gamma of zero": {"name": "step", "milestones_steps": [1], "gamma": 0.0},
    "no segments": {"name": "segments", "segments": []},
    "two units of a segment": segment(until_steps=3, until_epochs=1.0),
    "no end of a segment": segment(),
    "unknown shape": segment(until_steps=3, shape="square"),
    "gamma of one": {"name": "plateau", "gamma": 1.0},
    "negative patience": {"name": "plateau", "patience": -1},
}


@pytest.mark.parametrize("case", REFUSED_DECAYS)
def test_wrong_decay_is_refused(case):
    with pytest.raises(ConfigError, match=r"schedule\.decay"):
        schedule(REFUSED_DECAYS[case])


@each("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "cait_xxs24_224", "resnet18"])
def test_no_decay_on_what_a_network_names(name):
    """As timm's own optimizer spares: one dimension or less, or named by `no_weight_decay()`; also of a network inside."""
    with torch.device("meta"):
        network = timm.create_model(name)
        inside = nn.ModuleDict({"net": network, "term": nn.Linear(3, 4)})
    named = set(getattr(network, "no_weight_decay", set)())
    wanted = {f"net.{part}" for part, value in network.named_parameters() if value.ndim <= 1 or part in named}
    wanted.add("term.bias")
    for on, expected in (
        ("timm", wanted),
        ("kernels", {part for part, value in inside.named_parameters() if value.ndim <= 1}),
        ("all", set()),
    ):
        spared = {id(value) for value in without_decay(inside, on)}
        assert {part for part, value in inside.named_parameters() if id(value) in spared} == expected, on
    assert (wanted == {part for part, value in inside.named_parameters() if value.ndim <= 1}) == (name == "resnet18")
