"""Kills, signals, full disks and rival processes."""

import json
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from kdrun.data.loader import Loader
from kdrun.runs.record import find_records, read_record
from kdrun.training.checkpoint import Checkpoint
from tests.conftest import FAST, TEACHER
from tests.processes import Forked, command

pytestmark = pytest.mark.slow

# Dropout makes the result depend on torch's global generator, EMA and plateau on state beyond the weights.
LONG = [
    *FAST, "method=supervised", "student=timm", "student.name=test_resnet", "+student.args.drop_rate=0.3", "student.size=16",
    "schedule.steps=60", "schedule.ema_decay=0.9", "schedule/decay=plateau", "schedule.decay.patience=0", "execution.checkpoint_every_steps=7",
]  # fmt: skip
LONG.remove("student=resnet8")
LONG.remove("student.args.width=4")


def checkpoints(outputs: Path) -> list[Path]:
    return sorted(outputs.glob("runs/*/*/*/*/checkpoint/last.pt"))


def result(directory: Path) -> tuple[object, ...]:
    record = json.loads((directory / "record.json").read_text())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    predictions = [p.read_bytes() for p in sorted((directory / "predictions").iterdir())]
    return (
        (directory / "student.safetensors").read_bytes(),
        record["metrics"],
        record["best_on_val"],
        lines,
        predictions,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    from kdrun.cli.train import main

    outputs = tmp_path_factory.mktemp("whole")
    assert main([*LONG, f"execution.outputs={outputs}"]) == 0
    ((directory, _),) = find_records(outputs)
    return result(directory)


def waiting(outputs: Path, at: int) -> int:
    """The command line, which waits before the batch of step `at` until a file `go` stands in the outputs."""
    plain = Loader.batch

    def batch(self: Loader, step: int) -> object:
        if step == at:
            (outputs / "reached").touch()
        while step == at and not (outputs / "go").exists():
            time.sleep(0.05)
        return plain(self, step)

    Loader.batch = batch
    return command(*LONG, f"execution.outputs={outputs}")


def stopped(outputs: Path, at: int) -> Forked:
    """A process that waits before the batch of that step."""
    process = Forked(waiting, outputs, at)
    process.wait_for((outputs / "reached").exists)
    return process


def in_files_up_to(limit: int, outputs: Path) -> int:
    """The command line where no file may grow larger: the kernel fails the write, as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return command(*LONG, f"execution.outputs={outputs}")


def test_killed_and_resumed_is_bitwise_the_same(train, outputs, uninterrupted, capsys):
    stopped(outputs, at=33).kill()
    ((directory, record),) = find_records(outputs)
    assert record["status"] == "running"
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 33, "torn')  # a line that the kill cut off
    assert train(*LONG) == 0
    out = capsys.readouterr().out
    assert "resumed at step 28 of 60" in out
    assert "took over" in out
    assert result(directory) == uninterrupted


def test_a_damaged_checkpoint_falls_back_to_the_previous_one_and_says_so(train, outputs, uninterrupted, capsys):
    stopped(outputs, at=33).kill()
    (last,) = checkpoints(outputs)
    last.write_bytes(last.read_bytes()[:1000])
    previous = last.with_name("previous.pt").read_bytes()
    last.with_name("previous.pt").write_bytes(previous[:1000])
    assert train(*LONG) == 1
    assert "damaged checkpoint" in capsys.readouterr().out
    last.with_name("previous.pt").write_bytes(previous)
    assert train(*LONG) == 0
    assert "going on from previous.pt" in capsys.readouterr().out
    assert result(last.parent.parent) == uninterrupted


def test_memories_and_parameters_of_loss_terms_resume_bitwise(train, outputs, tmp_path, monkeypatch, capsys):
    """In this process: the batch of step 9 fails, the same command goes on from the one before."""
    command = [
        *FAST, *TEACHER, "loss=wttm_crd", "+loss/term@loss.vid=vid", "loss.crd.num_negatives=100",
        "execution.checkpoint_every_steps=3",
    ]  # fmt: skip
    assert train(*command) == 0
    ((whole, _),) = [found for found in find_records(outputs) if found[1]["method"] == "distill"]
    plain = Loader.batch

    def broken(self: Loader, step: int) -> object:
        if step == 9:
            raise OSError("the disk is gone")
        return plain(self, step)

    shutil.move(whole, tmp_path / "whole")
    monkeypatch.setattr(Loader, "batch", broken)
    assert train(*command) == 1
    monkeypatch.undo()
    state = Checkpoint.read(whole / "checkpoint" / "last.pt")["method"]
    assert {"loss_sets.student.terms.crd.student_memory", "loss_sets.student.terms.crd.log_z"} <= set(state)
    assert train(*command) == 0
    assert "resumed at step 9 of 20" in capsys.readouterr().out
    assert result(whole) == result(tmp_path / "whole")
    assert not (whole / "method.safetensors").exists()  # 51 MB of memories on CIFAR


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_checkpoints_and_the_same_command_goes_on(train, outputs, uninterrupted, number):
    process = stopped(outputs, at=10)
    process.send_signal(number)
    time.sleep(0.3)
    (outputs / "go").touch()
    assert process.wait(60) == 128 + number
    assert f"stopped by {number.name} after step 11 of 60; a checkpoint was written" in process.text
    assert train(*LONG) == 0
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted


def test_a_second_ctrl_c_stops_at_once_and_nothing_is_lost(train, outputs, uninterrupted):
    process = stopped(outputs, at=10)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert train(*LONG) == 0
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted


def test_sigterm_stops_a_sweep_at_a_step_boundary(outputs, spawn, train, uninterrupted):
    process = spawn("-m", *LONG, "schedule.steps=100000", "seed=0,1", "execution.checkpoint_every_steps=100000")
    process.wait_for(lambda: any('"step": 10' in p.read_text() for p in outputs.glob("runs/*/*/*/*/metrics.jsonl")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "a checkpoint was written" in process.text
    ((directory, record),) = find_records(outputs)  # the second job did not start
    assert record["status"] == "running"
    assert (directory / "checkpoint" / "last.pt").exists()
    assert not list(outputs.rglob("*.lock"))


def test_full_disk_while_a_checkpoint_is_written(train, outputs, uninterrupted):
    stopped(outputs, at=9).kill()
    (last,) = checkpoints(outputs)
    before = last.read_bytes()
    process = Forked(in_files_up_to, len(before) // 2, outputs)
    assert process.wait(60) == 1
    assert "File too large" in process.text
    assert "Traceback" not in process.text
    assert last.read_bytes() == before
    assert not [p for p in last.parent.iterdir() if ".tmp" in p.name]
    record = read_record(last.parent.parent)
    assert record is not None
    assert record["status"] == "failed"
    assert train(*LONG) == 0
    assert result(last.parent.parent) == uninterrupted


def test_two_processes_one_builds_and_the_other_waits(outputs, spawn):
    command = [*FAST, *TEACHER, "schedule.steps=60", "teacher.steps=200"]
    first, second = spawn(*command), spawn(*command)
    codes, texts = [p.wait(200) for p in (first, second)], [p.text for p in (first, second)]
    assert codes == [0, 0], texts
    assert sum("done by another process" in t or "done already" in t for t in texts) >= 1, texts
    found = dict(find_records(outputs))
    assert len(found) == 2
    for directory in found:
        steps = [
            json.loads(line)["step"]
            for line in (directory / "metrics.jsonl").read_text().splitlines()
            if "train/lr" in line
        ]
        assert steps == sorted(set(steps))  # one writer
        method = directory.parts[-4]
        assert (directory / "log.txt").read_text().count(f"{method} on digits:") == 1
    assert not list(outputs.rglob("*.lock"))


def test_a_waiting_process_takes_over_from_a_killed_one(outputs, spawn, uninterrupted):
    owner = stopped(outputs, at=12)
    waiter = spawn(*LONG)
    waiter.wait_for(lambda: "waiting for" in waiter.text)
    assert f"process {owner.pid}" in waiter.text
    owner.kill()
    assert waiter.wait(120) == 0, waiter.text
    assert "took over" in waiter.text
    ((directory, _),) = find_records(outputs)
    assert result(directory) == uninterrupted
