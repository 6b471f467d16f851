"""experiment=debug/...: runs that look for mistakes, of every method, apart from results."""

import json

import pytest
import torch

import kdrun.config.key as keys
from kdrun.config.compose import Composer
from kdrun.config.job import Job
from kdrun.core.registry import registered
from kdrun.runs.metrics_log import logged
from kdrun.training.assembly import Assembly
from kdrun.training.logbook import told_of_one_batch
from kdrun.training.runner import run

NEEDS = {
    "peer_distill": ["students=[resnet8,resnet14]"], "peer_fixmatch": ["students=[resnet8,resnet14]"],
    "tip_adapter": ["dataset.num_labels=16/class", "teacher=digits_clip"],
}  # fmt: skip
SMALL = ["student.args.width=4", "teacher=none", "method=supervised", "execution.device=cpu", "execution.threads=1"]


@pytest.fixture(scope="module")
def composer():
    with Composer() as composer:
        yield composer


def with_all_it_needs(job: Job) -> list[Job]:
    return [job, *(other for need in job.requires.values() for other in with_all_it_needs(need))]


def test_few_steps_go_with_every_method_and_with_all_runs_that_it_needs(composer):
    for method in registered("method"):
        words = [f"method={method}", *NEEDS.get(method, [])]
        runs = with_all_it_needs(composer.job(["experiment=debug/few_steps", *words]))
        assert {job.config.clock(10_000).total_steps for job in runs if job.config.needs.trains} <= {2}, method
        assert {job.outputs.as_posix() for job in runs} == {"outputs/debug"}, method
        plain = {job.key for job in with_all_it_needs(composer.job(words))}
        assert plain.isdisjoint({job.key for job in runs}), method


def test_of_a_list_of_experiments_the_later_wins(composer):
    pair, debug = "ttm/resnet56_resnet20", "debug/few_steps"
    config = composer.typed([f"experiment=[{pair},{debug}]"])
    plain = composer.typed([f"experiment={pair}"])
    assert (config.debug.steps, config.schedule.eval_every_steps, config.tracker.name) == (2, 1, "none")
    assert (config.dataset, config.students, config.losses) == (plain.dataset, plain.students, plain.losses)
    assert config.schedule.decay == plain.schedule.decay
    other = composer.typed([f"experiment=[{debug},demo]"])
    assert (other.dataset.num_labels, other.debug.steps) == (100, 2)


def test_a_debug_run_is_another_one_once_the_code_has_changed(composer, monkeypatch):
    debug, plain = composer.typed(["experiment=debug/one_batch"]), composer.typed([])
    before = keys.run_key(debug), keys.run_key(plain)
    monkeypatch.setattr(keys, "content_hash", lambda *_: "changed")
    assert keys.run_key(debug) != before[0]
    assert keys.run_key(plain) == before[1]


def test_what_is_profiled_has_the_same_key(composer):
    assert composer.job(["execution.profile_steps=3"]).key == composer.job([]).key


def test_the_teacher_of_a_repeated_batch_sees_others(composer):
    job = composer.job(["experiment=debug/one_batch", "schedule.ema_decay=0.9", "schedule/decay=cosine"])
    schedule = job.config.schedule
    assert (schedule.ema_decay, schedule.decay.name, schedule.weight_decay) == (None, "constant", 0.0)
    assert [other.config.debug.repeat_batch for other in job.requires.values()] == [False]


@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_each_step_has_the_batch_of_the_first_and_no_more_images_than_asked(method, composer):
    words = ["experiment=debug/one_batch", f"method={method}", "dataset.num_labels=100", *SMALL[3:]]
    assembly = Assembly.of(composer.job(words))
    first, later = assembly.loader.batch(0), assembly.loader.batch(7)
    views = [(first[stream].views[name], later[stream].views[name]) for stream in first for name in first[stream].views]
    assert len(views) == {"supervised": 1, "fixmatch": 3}[method]
    assert all(torch.equal(a.pixels, b.pixels) and torch.equal(a.index, b.index) for a, b in views)
    split = assembly.split
    sizes = [len(split.val), len(split.unlabeled), *(len(index) for _, index, _ in assembly.evaluator.splits.values())]
    assert all(0 < size <= 256 for size in sizes)
    assert len(split.labeled) == 100
    assert split.num_test == len(assembly.evaluator.splits["test"][1])
    assembly.loader.close()


def test_the_losses_of_one_batch_fall_and_a_profile_is_left(composer, tmp_path, caplog):
    words = ["experiment=debug/one_batch", *SMALL, f"execution.outputs={tmp_path}", "execution.profile_steps=2"]
    job = composer.job([*words, "student.args.width=8"])
    with caplog.at_level("INFO", "kdrun"):
        record = run(job)
    assert (record["status"], record["warnings"], record["steps"]) == ("done", [], 100)
    losses = [line["train/loss/ce"] for line in logged(job.directory, record) if "train/loss/ce" in line]
    assert losses[-1] < 0.1 * losses[0]
    assert any(line.startswith("the same batch again and again: ce ") for line in caplog.messages)
    steps = [
        e for e in json.loads((job.directory / "trace.json").read_text())["traceEvents"] if "ProfilerStep" in e["name"]
    ]
    assert len({event["name"] for event in steps}) == 2
    table = caplog.messages[
        next(i for i, line in enumerate(caplog.messages) if "operation (its own time)" in line) + 1 :
    ]
    shares = [float(line.split()[1].rstrip("%")) for line in table[:10]]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0


def test_a_loss_that_does_not_fall_is_named():
    def lines(**losses: tuple[float, float]) -> list[dict[str, float]]:
        return [{f"train/loss/{name}": pair[k] for name, pair in losses.items()} | {"step": k} for k in (0, 1)]

    assert told_of_one_batch(lines(ce=(2.0, 0.1), soft=(2.0, 1.5), guessed=(0.0, 0.4))) == []
    (line,) = told_of_one_batch(lines(ce=(2.0, 0.1), kd=(2.0, 1.9), at=(1.0, 3.0)))
    assert line.startswith("on one batch has hardly come down: kd, at; ")
