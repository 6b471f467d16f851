"""What evaluations will cost, said before a run begins."""

import random
from types import SimpleNamespace

import pytest
import torch

from kdrun.config.compose import Composer
from kdrun.config.schedule import Clock, ScheduleConfig
from kdrun.core import device
from kdrun.models.flops import flops_of
from kdrun.runs.record import find_records
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.wrap import Tempered
from kdrun.training import costs
from kdrun.training.assembly import Assembly
from kdrun.training.costs import GRAIN, Operations, evaluation_cost, fitting_threads

CPU = torch.device("cpu")
STUDENT = ["student=resnet8", "student.args.width=4", "schedule.batch_size=64"]


def assembled(*overrides, teacher=None):
    with Composer() as composer:
        made = Assembly.of(composer.typed([*STUDENT, "tracker=none", *overrides]), CPU)
    made.teacher = None if teacher is None else teacher(made)
    return made


def teacher(made):
    return Teacher(made.factory.network(made.config.teacher.model, 0).eval())


def _line(made):
    return evaluation_cost(made, Operations.of(made))


@pytest.mark.parametrize(
    ("step", "most", "wanted"),
    [(0.1, 8, 1), (1.9, 8, 1), (2.1, 8, 2), (5, 2, 2), (100, 8, 8), (100, 1, 1), (None, 8, 8)],
)
def test_a_run_has_as_many_threads_as_its_step_has_work_for(step, most, wanted):
    made = assembled("method=supervised", "loss=ce", "schedule.steps=3")
    operations = Operations(1, 1, None if step is None else int(step * GRAIN))
    assert fitting_threads(made, most, operations) == wanted
    made.device = torch.device("meta")  # another device has the work
    assert fitting_threads(made, most, operations) == most


def test_the_number_of_evaluations_is_how_often_the_loop_makes_one():
    rng = random.Random(0)
    for _ in range(300):
        total, per_epoch = rng.randint(1, 80), rng.choice([0.3, 1, 2.5, 7, 13.37])
        every = rng.choice([{}, {"steps": rng.randint(1, 90)}, {"epochs": rng.choice([0.1, 0.5, 1, 2, 3.3, 20])}])
        config = ScheduleConfig(steps=total, **{f"eval_every_{key}": value for key, value in every.items()})
        clock = Clock(per_epoch, total)
        made = sum(config.evaluates_after(step, clock) for step in range(1, total + 1))
        assert config.evaluations(clock) == made, (total, per_epoch, every)


def test_a_run_that_mostly_evaluates_is_told_so_with_the_key_that_lowers_it():
    told = assembled("method=supervised", "loss=ce", "schedule.steps=100", "schedule.eval_every_steps=10")
    # 10 evaluations of 140 + 400 images beside 100 steps of 64 images, forward and backward
    share = 5400 / (5400 + 3 * 6400)
    assert _line(told) == (
        f"evaluation: about {100 * share:.0f} % of the run by operations: 10 evaluations of 140 val images and 400 test "
        "images; fewer with a schedule.eval_every_steps above 10"
    )
    averaged = assembled(
        "method=supervised", "loss=ce", "schedule.steps=100", "schedule.eval_every_steps=10", "schedule.ema_decay=0.9"
    )
    share = 10800 / (10800 + 3 * 6400)
    assert f"about {100 * share:.0f} % " in _line(averaged)
    assert ", of live and of averaged weights; " in _line(averaged)


def test_a_run_that_mostly_trains_is_told_nothing_and_a_short_one_why():
    for words in (["schedule.steps=100"], ["schedule.steps=10000", "schedule.eval_every_steps=1000"]):
        assert _line(assembled("method=supervised", "loss=ce", *words)) is None
    line = _line(assembled("method=supervised", "loss=ce", "schedule.steps=3", "schedule.eval_every_steps=5"))
    assert line.endswith(
        ": 1 evaluation of 140 val images and 400 test images; that is the one at the end, beside 3 steps"
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_teacher_counts_in_each_step_and_once_at_the_end(wrapped):
    words = ["loss=kd", "teacher=resnet20", "schedule.steps=100", "schedule.eval_every_steps=10"]
    made = assembled(*words, teacher=teacher)
    network = made.teacher.network
    if wrapped:
        made.teacher = Teacher(Tempered(network, 2.0))
    one, other = flops_of(made.method.networks()["student"], made.size), flops_of(network, made.size)
    assert other > one > 0
    spent, step = 540 * (10 * one + other), 64 * (3 * one + other)
    assert f"about {100 * spent / (spent + 100 * step):.0f} % " in _line(made)
    made.stored = SimpleNamespace()  # its logits of the steps are kept
    assert f"about {100 * spent / (spent + 100 * 64 * 3 * one):.0f} % " in _line(made)


def test_what_cannot_be_counted_is_not_guessed():
    made = assembled("loss=kd", "teacher=resnet20", "schedule.steps=3", teacher=teacher)
    made.teacher.network.forward = lambda *_: 1 / 0
    assert _line(made) is None


@pytest.mark.parametrize(("grain", "wanted"), [(GRAIN, 1), (1, 2)])
def test_the_record_has_the_number_of_threads_that_was_found(train, outputs, monkeypatch, grain, wanted):
    monkeypatch.setattr(device, "_THREADS", 2)
    monkeypatch.setattr(costs, "GRAIN", grain)
    words = ["method=supervised", "loss=ce", "tracker=none", "schedule.steps=1", "execution.device=cpu"]
    assert train(*STUDENT, *words) == 0
    ((_, record),) = find_records(outputs)
    assert record["threads"] == wanted
