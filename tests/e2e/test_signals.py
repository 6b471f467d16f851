"""A signal at every place of a command: one line, the exit code, no lock, whole files, and the same result after it."""

import importlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdrun.cli import command as commands
from kdrun.core.signals import ENDING
from kdrun.runs.layout import run_lock
from kdrun.runs.record import find_records
from tests.conftest import FAST, TEACHER
from tests.processes import Forked

pytestmark = pytest.mark.slow
INT, TERM, HUP, USR1, USR2 = ENDING
CODES = {INT: 130, TERM: 143, HUP: 129, USR1: 138, USR2: 140}

# Dropout, EMA, plateau: the result depends on torch's generator and on state beyond the weights.
RUN = [
    *FAST, "method=supervised", "student=timm", "student.name=test_resnet", "+student.args.drop_rate=0.3",
    "student.size=16", "schedule.ema_decay=0.9", "schedule/decay=plateau", "schedule.decay.patience=0",
]  # fmt: skip
RUN.remove("student=resnet8")
RUN.remove("student.args.width=4")


def held_at(place: str, times: int, reached: Path, *words: str) -> int:
    """The command line, which waits where it calls `place` for that many times until a file `go` is there."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    plain: Callable[..., Any] = getattr(owner, last)
    calls = [0]

    def held(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == times:
            reached.touch()
            while not reached.with_name("go").exists():
                time.sleep(0.02)
        return plain(*arguments, **options)

    setattr(owner, last, held)
    return commands.main(words)


class Stopped:
    """A command that was sent a signal at a place."""

    def __init__(self, number: int, place: str, *words: str, times: int = 1, reached: Path, lets_go: bool) -> None:
        process = Forked(held_at, place, times, reached, *words)
        process.wait_for(reached.exists)
        process.send_signal(signal.Signals(number))
        if lets_go:
            time.sleep(0.3)
            reached.with_name("go").touch()
        self.code = process.wait(60)
        self.text = process.text
        for name in ("reached", "go"):
            reached.with_name(name).unlink(missing_ok=True)
        self.line = [line for line in self.text.splitlines() if line.startswith("interrupted: ")]
        assert self.code == CODES[number], self.text
        assert len(self.line) == 1, self.text
        assert f"stopped by {signal.Signals(number).name} " in self.line[0]
        assert "Traceback" not in self.text
        assert "Error" not in self.text


@pytest.fixture
def stopped(tmp_path: Path, outputs: Path) -> Callable[..., str]:
    """`stopped(TERM, "module:Class.function", "train", ...)`: what it said, once nothing is found that it left open."""

    def call(number: int, place: str, *words: str, times: int = 1, lets_go: bool = False) -> str:
        found = Stopped(number, place, *words, times=times, reached=tmp_path / "reached", lets_go=lets_go)
        left = [
            path.name
            for path in outputs.rglob("*")
            if path.name.endswith(".lock") or (path.name.startswith(".") and path.name != ".cache")
        ]
        assert not left
        return found.line[0]

    return call


def result(directory: Path) -> tuple[object, ...]:
    record = json.loads((directory / "record.json").read_text())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    files = {p.name: p.read_bytes() for p in sorted(directory.rglob("*")) if p.suffix in (".npz", ".safetensors")}
    return record["metrics"], record["best_on_val"], lines, files


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    from kdrun.cli.train import main

    outputs = tmp_path_factory.mktemp("whole")
    assert main([*RUN, f"execution.outputs={outputs}"]) == 0
    ((directory, _),) = find_records(outputs)
    return result(directory)


# --------------------------------------------------------------------------------------------------- before training


PLANNING = {
    "composing": "kdrun.config.compose:Composer.job",
    "checking": "kdrun.training.check:check",
}


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("place", PLANNING.values(), ids=PLANNING)
def test_in_planning_nothing_is_left(stopped, outputs, number, place):
    line = stopped(number, place, "train", *RUN, f"execution.outputs={outputs}")
    assert line.endswith("while planning, before anything was written; run the same command again")
    assert not outputs.exists()


BEFORE = {
    "loading data": ("kdrun.training.assembly:load_dataset", 2),  # the first time is planning's
    "building": ("kdrun.training.runner:seed_everything", 1),
    "resuming": ("kdrun.training.loop:Loop._resume", 1),
    "before the first step": ("kdrun.training.runner:_before", 1),
}


@pytest.mark.parametrize(("place", "times"), BEFORE.values(), ids=BEFORE)
def test_before_the_first_step(stopped, outputs, train, uninterrupted, place, times):
    for number in ENDING:
        line = stopped(number, place, "train", *RUN, f"execution.outputs={outputs}", times=times)
        assert str(outputs) in line
        assert "the same command" in line
    assert train(*RUN) == 0
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted


def test_while_it_waits_for_a_lock(outputs, spawn, train):
    assert train(*RUN) == 0
    ((directory, _),) = find_records(outputs)
    shutil.rmtree(directory)
    for number in ENDING:
        with run_lock(directory):
            process = spawn(*RUN)
            process.wait_for(lambda process=process: "waiting for" in process.text)
            process.send_signal(number)
            assert process.wait(20) == CODES[number]
            assert f"stopped by {number.name} while waiting for {directory.name}; run the same" in process.text
            assert sorted(os.listdir(directory.parent)) == [directory.name, f"{directory.name}.lock"]
            assert os.listdir(directory) == []  # Hydra's


def images(folder: Path) -> Path:
    for split in ("train", "val"):
        for k, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (12, 12), (40 * i, 100 * k, 7)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("place", ["kdrun.core.contents:Contents.read", "kdrun.data.packed:decoded"])
def test_while_images_are_packed(stopped, outputs, train, tmp_path, place):
    words = [
        *FAST, "method=supervised", "dataset=imagefolder", f"dataset.path={images(tmp_path / 'images')}",
        "dataset.num_labels=4", "dataset.size=8", "dataset.pack.size=8", "schedule.steps=2", "schedule.eval_every_steps=2",
    ]  # fmt: skip
    for number in (TERM, INT, USR1):
        stopped(number, place, "train", *words, f"execution.outputs={outputs}")
    assert train(*words) == 0


def test_while_it_downloads(stopped, outputs, tmp_path):
    words = ["train", *FAST, "method=supervised", "dataset=svhn", f"dataset.root={tmp_path / 'data'}"]
    for number in (TERM, HUP):
        line = stopped(number, "kdrun.data.sets.svhn:ensure_files", *words, f"execution.outputs={outputs}")
        assert "planning" in line


# ----------------------------------------------------------------------------------------------- training and after


TRAINING = {
    "a step": ("kdrun.training.loop:Loop._optimize", 7, "after step 7 of 20; a checkpoint was written"),
    "the last step": ("kdrun.training.loop:Loop._optimize", 20, "after step 20 of 20; a checkpoint was written"),
    "logging": ("kdrun.training.loop:Loop._flush", 1, "after step 5 of 20; a checkpoint was written"),
    "an evaluation": ("kdrun.training.loop:Loop._logits", 1, "after step 10 of 20; a checkpoint was written"),
    "an evaluation of averages": ("kdrun.training.ema:Ema._swap", 1, "after step 10 of 20; a checkpoint was written"),
    "the last evaluation": ("kdrun.training.loop:Loop._logits", 2, "after step 20 of 20; a checkpoint was written"),
    "keeping the best": ("kdrun.training.loop:Loop._files", 1, "after step 10 of 20; a checkpoint was written"),
    "the final metrics": ("kdrun.training.evaluator:Evaluator.final_metrics", 1, "after step 20 of 20; a checkpoint"),
    "saving predictions": ("kdrun.training.evaluator:Evaluator.save", 1, "after step 20 of 20; a checkpoint"),
    "saving networks": ("kdrun.training.runner:_save_networks", 1, "after step 20 of 20; a checkpoint was written"),
}


@pytest.mark.parametrize(("place", "times", "said"), TRAINING.values(), ids=TRAINING)
def test_in_training_a_checkpoint_is_written_and_the_result_is_the_same(
    stopped, outputs, train, uninterrupted, place, times, said, request
):
    number = ENDING[list(TRAINING).index(request.node.callspec.id) % len(ENDING)]
    line = stopped(number, place, "train", *RUN, f"execution.outputs={outputs}", times=times, lets_go=True)
    assert said in line
    ((directory, record),) = find_records(outputs)
    assert record["status"] == "running"
    assert (directory / "checkpoint" / "last.pt").exists()
    assert train(*RUN) == 0
    assert result(directory) == uninterrupted


@pytest.mark.parametrize("number", ENDING)
def test_every_signal_in_training(stopped, outputs, train, uninterrupted, number):
    place = "kdrun.training.loop:Loop._optimize"
    stopped(number, place, "train", *RUN, f"execution.outputs={outputs}", times=13, lets_go=True)
    assert train(*RUN) == 0
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted


def test_an_evaluation_is_broken_off(stopped, outputs):
    """It lasts longer than what a scheduler leaves: 30 to 60 seconds."""
    stopped(USR1, "kdrun.training.loop:Loop._logits", "train", *RUN, f"execution.outputs={outputs}", lets_go=True)
    ((directory, _),) = find_records(outputs)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "val/student/top1" in line]


def test_the_evaluation_of_a_teacher_is_broken_off(stopped, outputs, train, capsys):
    words = [*FAST, *TEACHER]
    place = "kdrun.teachers.teacher:Teacher.predict"
    line = stopped(TERM, place, "train", *words, f"execution.outputs={outputs}", lets_go=True)
    assert "after step 20 of 20; a checkpoint was written" in line
    assert train(*words) == 0
    assert "resumed at step 20 of 20" in capsys.readouterr().out


def test_the_record_is_being_written(stopped, outputs, train, uninterrupted):
    """The last of the three times: done."""
    words = ["train", *RUN, f"execution.outputs={outputs}"]
    for times in (1, 2, 3):
        stopped(HUP, "kdrun.training.runner:write_record", *words, times=times)
    assert train(*RUN) == 0
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted


# --------------------------------------------------------------------------------------------------- other commands


def test_a_sweep_starts_no_other_run_and_counts_what_is_done(stopped, outputs):
    words = ["train", "-m", *RUN, "seed=0,1,2", f"execution.outputs={outputs}"]
    line = stopped(USR2, "kdrun.training.runner:_execute", *words, times=2)
    assert line.endswith("run the same command again to go on (1 of 3 runs are done)")
    assert len(list(find_records(outputs))) == 2


def test_a_table_that_makes_its_runs(stopped, outputs):
    words = ["table", "table=demo", "execute=true", f"outputs={outputs}", "override=execution.threads=1"]
    line = stopped(TERM, "kdrun.training.runner:_execute", *words)
    assert "working on" in line
    assert len(list(find_records(outputs))) == 1


@pytest.mark.parametrize("number", ENDING)
def test_another_command(stopped, outputs, number):
    line = stopped(number, "kdrun.cli.status:main", "status", f"outputs={outputs}")
    assert line.endswith("while running kdrun status; run the same command again")


def test_what_the_parent_ignores_does_not_stop_a_run(outputs, tmp_path, uninterrupted):
    process = Forked(ignoring_hup, tmp_path / "reached", "train", *RUN, f"execution.outputs={outputs}")
    process.wait_for((tmp_path / "reached").exists)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    (tmp_path / "go").touch()
    assert process.wait(60) == 0
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted


def ignoring_hup(reached: Path, *words: str) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return held_at("kdrun.training.loop:Loop._optimize", 5, reached, *words)


def test_a_host_requeues_when_the_checkpoint_is_written_and_the_lock_is_free(outputs, tmp_path, uninterrupted, train):
    """As submitit does it: USR2 before the time is up; its handler requeues the job and exits."""
    process = Forked(as_submitit, outputs, tmp_path / "reached")
    process.wait_for((tmp_path / "reached").exists)
    process.send_signal(signal.SIGTERM)  # preemption begins
    time.sleep(0.3)
    (tmp_path / "go").touch()
    time.sleep(1)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == 77
    assert re.findall("bypassed|requeued with .*", process.text) == ["bypassed", "requeued with ['last.pt'] and []"]
    assert train(*RUN) == 0
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted


def as_submitit(outputs: Path, reached: Path) -> int:
    from kdrun.cli.plan import plan
    from kdrun.training.loop import Loop
    from kdrun.training.runner import run

    def requeue(*_: object) -> None:
        checkpoints = [path.name for path in outputs.rglob("last.pt")]
        print(f"requeued with {checkpoints} and {list(outputs.rglob('*.lock'))}", flush=True)
        raise SystemExit(77)

    signal.signal(signal.SIGTERM, lambda *_: print("bypassed", flush=True))
    signal.signal(signal.SIGUSR2, requeue)
    plain = Loop._optimize

    def held(self: Loop, step: int, *rest: Any) -> Any:
        if step == 12:
            reached.touch()
            while not reached.with_name("go").exists():
                time.sleep(0.02)
        return plain(self, step, *rest)

    Loop._optimize = held  # type: ignore[method-assign]
    (job,) = plan([*RUN, f"execution.outputs={outputs}"]).jobs
    run(job)
    return 0
