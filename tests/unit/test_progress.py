"""How far long jobs are: the words of bars and lines, when they come, where they go, and that nothing waits for them."""

import io
import logging
import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdrun.cli import export
from kdrun.config.compose import Composer
from kdrun.config.schedule import ScheduleConfig
from kdrun.core import progress
from kdrun.core.contents import Contents
from kdrun.core.progress import Meter, Speed, metered, shown
from kdrun.core.schema import build
from kdrun.core.world import alone
from kdrun.data import download
from kdrun.data.packed import Pack
from kdrun.methods.clustering import ClusteringConfig, dec
from kdrun.training.corruptions import CORRUPTIONS, Corruptions
from kdrun.training.evaluator import Evaluator
from kdrun.training.logbook import log_file
from kdrun.training.progress import TrainingMeter
from kdrun.training.waiting import nothing_waits
from tests.conftest import FAST
from tests.unit.test_captured import loop
from tests.unit.test_published import write_tree

LINE = re.compile(
    r"\S+: step (?P<step>\d+) of \d+(, [\d,.]+ images/s)?(, about \d+(\.\d)? (s|min|h) left)?"
    r", loss [\d.e-]+( \(\S+ [\d.e-]+(, \S+ [\d.e-]+)+\))?(?P<figures>(, (val|test)/top1 [01]\.\d{4})*)"
)
"""What a line of a training is, for who follows a run by it."""


class Time:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    """Seconds go by where a test says so."""
    clock = Time()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


@pytest.fixture
def lines(caplog):
    """What is said so far, wherever the log goes."""
    caplog.set_level(logging.INFO, "kdrun")
    return lambda: [record.getMessage() for record in caplog.records if record.name == progress.log.name]


@pytest.fixture
def always(monkeypatch):
    """A line, and a picture of the bar, for each update."""
    for name in ("MINUTE", "SHORT", "OFTEN"):
        monkeypatch.setattr(progress, name, 0.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Of stdout and stderr."""
    made = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=made, stderr=made))
    return made


def drawn(terminal):
    """The words beside the bar, one for each picture."""
    return [part.rpartition("| ")[2].rstrip() for part in terminal.getvalue().split("\r") if "| " in part]


# ------------------------------------------------------------------------------------------------------- any job


def test_a_line_comes_each_minute_with_rate_and_time_left_and_one_at_the_end(time, lines):
    with Meter("packing", 1000) as meter:
        for _ in range(100):
            time.now += 2
            meter.update(10)
    assert lines() == [
        "packing: 300 of 1000 images, 5.0 images/s, about 2 min left",
        "packing: 600 of 1000 images, 5.0 images/s, about 80 s left",
        "packing: 900 of 1000 images, 5.0 images/s, about 20 s left",
        "packing: 1000 images in 3 min",
    ]


def test_a_job_of_less_than_a_minute_says_nothing(time, lines, capfd):
    with Meter("packing", 59) as meter:
        for _ in range(59):
            time.now += 1
            meter.update()
    assert lines() == []
    assert capfd.readouterr() == ("", "")


def test_what_was_done_before_is_no_pace_of_this_process(time, lines):
    with Meter("packing", 1000, done=880) as meter:
        time.now += 60
        meter.update(60)
        assert lines() == ["packing: 940 of 1000 images, 1.0 images/s, about 60 s left"]


def test_bytes_are_told_with_their_unit_and_what_has_no_size_without_an_end(time, lines):
    for whole in (300_000_000, None):
        with Meter("a.tar", whole, "B", done=60_000_000) as meter:
            time.now += 60
            meter.update(120_000_000)
    assert lines() == [
        "a.tar: 180.0 MB of 300.0 MB, 2.0 MB/s, about 60 s left", "a.tar: 180.0 MB in 60 s",
        "a.tar: 180.0 MB, 2.0 MB/s", "a.tar: 180.0 MB in 60 s",
    ]  # fmt: skip


def test_a_unit_that_takes_seconds_has_a_time_left_and_no_rate(time, lines):
    for _ in metered(range(3), "corruptions", 3, "files"):
        time.now += 90
    assert lines()[:2] == ["corruptions: 1 of 3 files, about 3 min left", "corruptions: 2 of 3 files, about 90 s left"]


def test_the_speed_is_that_of_the_last_one_to_two_minutes():
    speed = Speed(0, 0.0)
    assert speed.at(0, 0.0) is None
    assert [speed.at(60, 60.0), speed.at(90, 75.0), speed.at(360, 120.0)] == [1.0, 1.2, 5.0]
    assert speed.at(410, 130.0) == 5.0  # 50 in 10 s, with those of the minute before: 350 in 70 s


def test_a_job_that_fails_is_not_said_to_have_ended(time, lines):
    def job():
        with Meter("packing", 10) as meter:
            time.now += 61
            meter.update()
            raise KeyError("it fails")

    with pytest.raises(KeyError):
        job()
    assert lines() == ["packing: 1 of 10 images, about 9 min left"]


def test_the_bar_and_the_line_say_the_same(time, lines, terminal, tmp_path):
    with log_file(tmp_path), Meter("packing", 100) as meter:
        time.now += 60
        meter.update(30)
    (line, _) = (tmp_path / "log.txt").read_text().splitlines()
    assert line.partition(" INFO ")[2] == drawn(terminal)[0] == "packing: 30 of 100 images, about 2 min left"
    assert lines() == []  # the bar stands there


@pytest.mark.parametrize(("asked", "bar", "said"), [(None, False, 1), (True, True, 1), (False, False, 0)])
def test_off_a_terminal_progress_is_as_asked_for_and_log_txt_has_the_lines(
    time, lines, capfd, tmp_path, asked, bar, said
):
    with log_file(tmp_path), shown(asked), Meter("packing", 100) as meter:
        time.now += 60
        meter.update(30)
        assert len(lines()) == said
    assert ("30%" in capfd.readouterr().err) == bar
    assert "INFO packing: 30 of 100 images" in (tmp_path / "log.txt").read_text()


def test_lines_go_to_stdout_where_only_stderr_is_a_terminal(time, lines, monkeypatch):
    """As with `> out.txt`."""
    stderr = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=io.StringIO(), stderr=stderr))
    with Meter("packing", 100) as meter:
        time.now += 60
        meter.update(30)
        assert lines() == drawn(stderr)


def test_a_job_of_seconds_draws_nothing(time, terminal):
    with Meter("packing", 100) as meter:
        for _ in range(100):
            time.now += 0.01
            meter.update()
    assert terminal.getvalue() == ""


def test_a_command_without_a_log_says_it_on_stderr(time, caplog, capsys):
    caplog.set_level(logging.WARNING, "kdrun.core")
    with Meter("predicting", 100) as meter:
        time.now += 60
        meter.update(30)
    out = capsys.readouterr()
    assert (out.out, out.err.splitlines()[0]) == ("", "predicting: 30 of 100 images, about 2 min left")


def test_another_rank_than_the_first_says_and_draws_nothing(time, lines, terminal, tmp_path, monkeypatch):
    with Meter("evaluating", 100, speaks=False) as meter:
        time.now += 60
        meter.update(30)
    monkeypatch.setattr(logging.getLogger("kdrun"), "level", logging.WARNING)  # as its log is set
    with Meter("packing", 100) as meter:
        time.now += 60
        meter.update(30)
    assert lines() == []
    assert terminal.getvalue() == ""


# ------------------------------------------------------------------------------------------------------ trainings


class Watch:
    """Of a session whose evaluations have taken so many seconds."""

    def __init__(self, time, before=0.0):
        self.time, self.began = time, time.now
        self.spent, self.before = {"eval": 0.0}, {"eval": before}

    def without_evaluation(self):
        return self.time.now - self.began - self.spent["eval"]


@cache
def typed(*overrides):
    with Composer() as composer:
        return composer.typed(["method=supervised", *FAST, *overrides])


def meter_of(time, done=0, before=0.0, *overrides, speaks=True):
    """Of a run of 1000 steps of 16 images, with an evaluation each 100."""
    config = typed("schedule.steps=1000", "schedule.eval_every_steps=100", *overrides)
    window = SimpleNamespace(losses={"ce": 1.25, "kd": 0.5})
    clock = config.schedule.clock(50)
    return TrainingMeter("s0-1a2b", config, clock, "student", done, Watch(time, before), window, speaks)


def step(time, meter, seconds):
    time.now += seconds
    meter.update()


def evaluate(time, meter, seconds, **metrics):
    time.now += seconds
    meter._watch.spent["eval"] += seconds
    meter.evaluated({name.replace("_", "/"): value for name, value in metrics.items()})


def test_a_training_tells_each_minute_and_each_evaluation(time, lines):
    """2 s a step, 10 s an evaluation; the first step compiles for a minute, and counts for nothing."""
    meter = meter_of(time)
    step(time, meter, 60)
    for _ in range(99):
        step(time, meter, 2)
    evaluate(time, meter, 10, val_student_top1=0.5, test_student_top1=0.25, test_student_2_top1=0.75)
    step(time, meter, 2)
    assert lines() == [
        "s0-1a2b: step 1 of 1000, loss 1.75 (ce 1.25, kd 0.5)",
        # what is to come of evaluations is not known yet: 969 steps of 2 s
        "s0-1a2b: step 31 of 1000, 8.0 images/s, about 32 min left, loss 1.75 (ce 1.25, kd 0.5)",
        "s0-1a2b: step 61 of 1000, 8.0 images/s, about 31 min left, loss 1.75 (ce 1.25, kd 0.5)",
        "s0-1a2b: step 91 of 1000, 8.0 images/s, about 30 min left, loss 1.75 (ce 1.25, kd 0.5)",
        # 900 steps of 2 s, 9 evaluations of 10 s: 1890 s
        "s0-1a2b: step 100 of 1000, 8.0 images/s, about 32 min left, loss 1.75 (ce 1.25, kd 0.5), "
        "val/top1 0.5000, test/top1 0.2500",
    ]
    assert all(LINE.fullmatch(line) for line in lines())


def test_the_last_line_has_no_time_left(time, lines):
    meter = meter_of(time, 998, 90.0)
    for _ in range(2):
        step(time, meter, 1)
    evaluate(time, meter, 10, val_student_top1=1.0)
    assert lines() == ["s0-1a2b: step 1000 of 1000, 16 images/s, loss 1.75 (ce 1.25, kd 0.5), val/top1 1.0000"]


def test_a_resumed_training_counts_its_own_steps_and_knows_what_evaluations_took(time, lines):
    meter = meter_of(time, 550, 25.0)  # five evaluations of 5 s
    step(time, meter, 1)
    for _ in range(6):
        step(time, meter, 10)
    # 443 steps of 10 s, 5 evaluations of 5 s: 4455 s
    assert lines()[-1].startswith("s0-1a2b: step 557 of 1000, 1.6 images/s, about 74 min left, ")
    evaluate(time, meter, 400)  # this session's own count from now on: 443 steps, 5 of 400 s
    assert ", about 1.8 h left, " in lines()[-1]


@pytest.mark.parametrize("overrides", [(), ("schedule.accumulate=2",), ("schedule.graph=true",)])
def test_images_are_those_of_whole_steps_of_all_streams(time, overrides):
    meter = meter_of(time, 0, 0.0, "method=fixmatch", "method.unlabeled_ratio=7", *overrides)
    step(time, meter, 1)
    step(time, meter, 2)
    assert ", 64 images/s, " in meter.words()  # 16 and 7 times 16 in 2 s


def test_the_bar_keeps_the_figures_of_the_last_evaluation(time, terminal, tmp_path):
    with log_file(tmp_path), meter_of(time) as meter:
        step(time, meter, 1)
        step(time, meter, 1)
        evaluate(time, meter, 1, test_student_top1=0.5)
        step(time, meter, 1)
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert line.endswith(", loss 1.75 (ce 1.25, kd 0.5), test/top1 0.5000")
    shown_at_last = drawn(terminal)[-1]
    assert line.partition("INFO ")[2].partition(", about")[0] == "s0-1a2b: step 2 of 1000, 16 images/s"
    assert shown_at_last.startswith("s0-1a2b: step 3 of 1000, 16 images/s, about 17 min left, loss 1.75")


@pytest.mark.parametrize("keys", [
    {}, {"eval_every_steps": 7}, {"eval_every_steps": 10}, {"eval_every_steps": 500}, {"eval_every_epochs": 1},
    {"eval_every_epochs": 0.1}, {"eval_every_epochs": 2.5},
])  # fmt: skip
def test_evaluations_to_come_are_those_that_will_be(keys):
    schedule = build(ScheduleConfig, {"steps": 60, **keys}, "schedule")
    clock = schedule.clock(100)  # 6.25 steps an epoch
    at = [done for done in range(1, 61) if schedule.evaluates_after(done, clock)]
    assert [schedule.evaluations(clock, done) for done in range(61)] == [
        sum(step > done for step in at) for done in range(61)
    ]


def quick(folder, *overrides):
    """A run of 5 steps, evaluated after 2, 4 and 5 on images of one class."""
    made = loop(folder, "supervised", *overrides, "schedule.eval_every_steps=2")
    images, at = torch.zeros(8, 8, 8, 1, dtype=torch.uint8), torch.arange(8)
    made.evaluator = Evaluator({"val": (images, at, at * 0), "test": (images, at, at * 0)}, 8)
    return made


@pytest.mark.parametrize("kind", ["graph=false", "graph=true"])
def test_nothing_that_is_told_waits_for_the_device(tmp_path, lines, always, terminal, monkeypatch, kind):
    """Each step is told and drawn, in both ways to take it."""
    update = TrainingMeter.update

    def watched(self, count=1):
        with nothing_waits(AssertionError):
            update(self, count)

    monkeypatch.setattr(TrainingMeter, "update", watched)
    made = quick(tmp_path, f"schedule.{kind}")
    with log_file(tmp_path):
        made.run()
    made.loader.close()
    found = [line.partition(" INFO ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    told = [match for line in found if (match := LINE.fullmatch(line))]
    assert [int(match["step"]) for match in told] == [2, 2, 3, 4, 4, 5, 5]  # of the first one no losses are known yet
    assert [int(match["step"]) for match in told if match["figures"]] == [2, 4, 5]
    assert any(": step 5 of 5, " in words for words in drawn(terminal))


def test_a_short_training_tells_each_evaluation_with_the_losses_of_the_steps_before_it(tmp_path, lines):
    made = quick(tmp_path, "execution.log_every_steps=50")
    made.run()
    made.loader.close()
    found = [LINE.fullmatch(line) for line in lines()]
    assert [int(match["step"]) for match in found] == [2, 4, 5]
    assert all(match["figures"].count("top1") == 2 for match in found)
    assert lines()[0].startswith(f"{tmp_path.name}: step 2 of 5, ")


def test_another_rank_tells_nothing_of_a_training(tmp_path, lines, always):
    made = quick(tmp_path)
    with alone(first=False):
        made.run()
    made.loader.close()
    assert lines() == []


# ------------------------------------------------------------------------------------------------- each long job


def hashing(folder):
    write_tree(folder / "data")
    Contents(sorted((folder / "data").rglob("*.png")), folder / "data", folder / "outputs").read()


def packing(folder):
    write_tree(folder / "data")
    contents = Contents(sorted((folder / "data").rglob("*.png")), folder / "data", folder / "outputs")
    Pack(contents, 8, "center", folder / "outputs", "dataset.path").build()


def downloading(folder, monkeypatch):
    response = io.BytesIO(b"0" * 3_000_000)
    response.length = 3_000_000
    monkeypatch.setattr(download, "_ask", lambda url, start: response)
    download.retrieve("", folder / "a.tar")


def evaluating(folder):
    images, at = torch.zeros(8, 8, 8, 1, dtype=torch.uint8), torch.arange(8)
    Evaluator({"val": (images, at, at)}, 4).logits(lambda view: {"net": torch.zeros(len(view.index), 8)}, "the teacher")


def corrupted(folder):
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", np.zeros((10, 8, 8, 1), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile([0, 1], 5))

    def ask(evaluator):
        return evaluator.logits(lambda view: {"net": torch.rand(len(view.index), 2)})

    Corruptions(str(folder), (8, 8, 1), 2).evaluate(ask, torch.device("cpu"), batch_size=4)


def clustering(folder):
    config = ClusteringConfig(init="class_means", max_updates=2, update_steps=5, tolerance=0)
    dec(torch.randn(60, 4), 3, 0, config, torch.arange(60) % 3)


def exporting(folder):
    trained = SimpleNamespace(
        shown=SimpleNamespace(some=lambda count: (torch.ones(count, 1, 2, 2), "images")),
        classifier=lambda pixels: pixels,
    )
    options = SimpleNamespace(check=4, dynamic=False, batch=2, to="onnx", tolerance=1e-4, repeats=2)
    export._comparison(trained, trained.classifier, options)
    export._timing(trained, trained.classifier, options)


@pytest.mark.parametrize(("job", "said"), [
    (hashing, ["hashing: 1 of 12 files"]),
    (packing, ["packing: 1 of 12 images", "packing: 12 images in 0 s"]),
    (downloading, ["a.tar: 1.0 MB of 3.0 MB", "a.tar: 3.0 MB in 0 s"]),
    (evaluating, ["evaluating the teacher on val: 4 of 8 images"]),
    (corrupted, ["corruptions: 1 of 15 files", "evaluating on fog, severity 3: 2 of 2 images"]),
    (clustering, ["clustering, unless it converges before: 5 of 10 steps"]),
    (exporting, ["comparing with the checkpoint: 1 of 2 batches", "timing onnx: 1 of 2 calls"]),
])  # fmt: skip
def test_each_long_job_tells_how_far_it_is(tmp_path, lines, always, monkeypatch, job, said):
    job(tmp_path, *([monkeypatch] if job is downloading else []))
    found = [line.partition(", about ")[0] for line in lines()]
    for line in said:
        assert any(told == line or told.startswith(f"{line}, ") for told in found), found
