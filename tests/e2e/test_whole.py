"""Damage of what a run left: what can be made anew is, what is asked for itself is refused, and nothing is used."""

import json
import os
import shutil

import pytest
import torch

import kdrun
from kdrun.cli.command import main
from kdrun.core import lock as lock_module
from kdrun.core.errors import KdrunError
from kdrun.core.sums import unsealed
from kdrun.data.loader import Loader
from kdrun.results.cell import curve_of, value_of
from kdrun.results.progress import state_of
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records, read_record, write_record
from kdrun.training.checkpoint import Checkpoint
from tests.conftest import FAST, TEACHER
from tests.damage import DAMAGE, OTHER_SIZE, SAME_SIZE, flipped

pytestmark = pytest.mark.slow

RUN = [*FAST, *TEACHER, "method=uncertainty_distill"]
FILES = [
    "student.safetensors",
    "student.best.safetensors",
    "predictions/test-student.npz",
    "predictions/val-teacher.npz",
    "metrics.jsonl",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from kdrun.cli.train import main

    outputs = tmp_path_factory.mktemp("finished")
    assert main([*RUN, f"execution.outputs={outputs}"]) == 0
    return outputs


@pytest.fixture
def runs(finished, outputs):
    """The run and its teacher's, in a place of their own."""
    shutil.copytree(finished, outputs)
    found = {record["method"]: directory for directory, record in find_records(outputs)}
    return found["uncertainty_distill"], found["supervised"]


def results(directory):
    return {name: (directory / name).read_bytes() for name in read_record(directory)["files"]}


def test_a_record_lists_all_that_is_read_back(runs):
    for directory in runs:
        files = read_record(directory)["files"]
        there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
        assert there - set(files) == {"record.json", "config.yaml", "log.txt"}
        assert set(files) < there


@pytest.mark.parametrize("damage", OTHER_SIZE)
@pytest.mark.parametrize("file", FILES)
def test_a_run_that_lacks_something_is_not_done(train, runs, capsys, damage, file):
    directory, _ = runs
    before = results(directory)
    damage(directory / file)
    assert state_of(directory).state == "damaged"
    assert train(*RUN) == 0
    out = capsys.readouterr().out
    assert out.count(f"{directory / file}: ") == out.count("; it is trained anew") == 1
    assert results(directory) == before
    assert train(*RUN) == 0
    assert "done already" in capsys.readouterr().out


@pytest.mark.parametrize("damage", SAME_SIZE)
@pytest.mark.parametrize("file", FILES)
def test_a_run_that_was_altered_is_refused_with_the_remedy(train, runs, capsys, damage, file):
    directory, _ = runs
    damage(directory / file)
    assert train(*RUN) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {directory / file}: is not as it was written (its sha256 differs); delete {directory}, the same command "
        "trains this run anew"
    )
    shutil.rmtree(directory)
    assert train(*RUN) == 0


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["student.safetensors", "record.json", "predictions/test-student.npz"])
def test_a_prerequisite_that_is_damaged_is_trained_anew(train, runs, capsys, damage, file):
    directory, teacher = runs
    before, own = results(teacher), results(directory)
    shutil.rmtree(directory)
    damage(teacher / file)
    assert train(*RUN) == 0
    assert ("; it is trained anew" in capsys.readouterr().out) == (
        (damage.__name__, file) != ("deleted", "record.json")
    )
    assert results(teacher) == before
    assert results(directory) == own


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate"], ["evaluate", "dataset=digits"], ["plot", "reliability"],
        ["analyze", "teacher"], ["export", "to=safetensors"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_command_opens_what_was_altered(runs, capsys, command):
    directory, _ = runs
    for name in read_record(directory)["files"]:
        if name != "metrics.jsonl" and ".best." not in name:
            flipped(directory / name)
    assert (
        main(
            [
                command[0],
                *[w for w in command[1:] if "=" not in w],
                f"run={directory}",
                *[w for w in command[1:] if "=" in w],
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert "is not as it was written (its sha256 differs); delete" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("predictions/val-student.npz", ["evaluate"]), ("predictions/test-teacher.npz", ["plot", "reliability"]),
        ("metrics.jsonl", ["plot", "curves"]),
    ],
)  # fmt: skip
def test_no_command_does_without_what_is_gone(runs, capsys, file, command):
    directory, _ = runs
    (directory / file).unlink()
    assert main([*command, f"run={directory}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {directory / file}: is gone; delete")


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_that_was_altered_is_opened_from_python(runs, damage):
    directory, teacher = runs
    run = FinishedRun.open(directory)
    damage(directory / "student.safetensors")
    damage(directory / "predictions" / "test-student.npz")
    damage(teacher / "predictions" / "test-student.npz")
    for use in (
        run.network, run.method, lambda: run.predictions("test", "student"), lambda: run.required("teacher"),
        lambda: kdrun.load(directory), lambda: kdrun.load(directory / "student.safetensors"),
    ):  # fmt: skip
        with pytest.raises(KdrunError):
            use()


@pytest.mark.parametrize("damage", SAME_SIZE)
def test_no_figure_comes_of_a_log_that_was_altered(runs, damage):
    directory, _ = runs
    damage(directory / "metrics.jsonl")
    for use in (
        lambda: curve_of(directory, "val/top1"),
        lambda: value_of(read_record(directory), "val/top1", "median20", directory),
    ):
        with pytest.raises(KdrunError, match=r"metrics\.jsonl: is not as it was written"):
            use()


def test_a_flip_in_a_record_is_damage(train, runs, capsys):
    directory, _ = runs
    path = directory / "record.json"
    text = path.read_text()
    at = text.index('"test/student/top1": 0.') + len('"test/student/top1": 0.')
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    assert train(*RUN) == 2
    assert (
        f"{path}: not a readable record (it is not as it was written: its checksum differs)" in capsys.readouterr().err
    )


def test_a_record_and_weights_from_before_there_were_checksums_are_read(train, runs, capsys):
    directory, teacher = runs
    for place in runs:
        old = {key: value for key, value in read_record(place).items() if key != "files"}
        (place / "record.json").write_text(json.dumps(old, indent=1))
    assert train(*RUN) == 0
    assert "done already" in capsys.readouterr().out
    assert FinishedRun.open(directory).predictions("test", "student")[0].shape == (400, 10)
    assert FinishedRun.open(directory).network().name == "resnet8"
    (teacher / "student.safetensors").unlink()
    shutil.rmtree(directory)
    assert train(*RUN) == 0
    assert "student.safetensors: is gone; it is trained anew" in capsys.readouterr().out


def test_what_is_done_already_is_rid_of_what_a_kill_left(train, runs, capsys, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE", 0.5)
    directory, _ = runs
    lock = directory.with_name(f"{directory.name}.lock")
    lock.write_text(json.dumps({"host": "gone", "pid": 1, "token": "0"}))
    os.utime(lock, (0, 0))
    for name in ("checkpoint/last.pt", ".record.json.tmp-1-2-3", "predictions/.a.npz.tmp-1-2-3"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"left")
    assert train(*RUN) == 0
    assert "done already" in capsys.readouterr().out
    there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}
    assert there == {*read_record(directory)["files"], "record.json", "config.yaml", "log.txt"}
    assert not list(directory.parent.glob("*.lock"))


def test_a_checkpoint_that_was_kept_on_purpose_stays(train, outputs):
    run = [*FAST, "method=supervised", "execution.keep_checkpoint=true", "execution.checkpoint_every_steps=5"]
    assert train(*run) == 0
    assert train(*run[:-2]) == 0
    assert len(list(outputs.rglob("last.pt"))) == 1


# ------------------------------------------------------------------------------------------- while it is trained

STOP = ["method=supervised", "execution.checkpoint_every_steps=4"]


@pytest.fixture
def stopped(train, outputs, monkeypatch):
    """A run that failed at step 15, with states of steps 12 and 8; and what the whole run left."""
    assert train(*FAST, *STOP) == 0
    ((directory, _),) = find_records(outputs)
    whole = results(directory)
    shutil.rmtree(directory)
    plain = Loader.batch

    def broken(self, step):
        if step == 15:
            raise OSError("the disk is gone")
        return plain(self, step)

    monkeypatch.setattr(Loader, "batch", broken)
    assert train(*FAST, *STOP) == 1
    monkeypatch.setattr(Loader, "batch", plain)
    return directory, whole


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["checkpoint/last.pt", "checkpoint/previous.pt"])
def test_a_damaged_state_is_never_gone_on_from(train, stopped, capsys, damage, file):
    directory, whole = stopped
    damage(directory / file)
    assert train(*FAST, *STOP) == 0
    assert f"resumed at step {8 if file.endswith('last.pt') else 12} of 20" in capsys.readouterr().out
    assert results(directory) == whole


@pytest.mark.parametrize("part", ["method", "optimizer", "progress", "random", "window"])
def test_a_state_that_is_legible_and_not_whole_is_never_gone_on_from(train, stopped, capsys, part):
    directory, whole = stopped
    place = Checkpoint(directory / "checkpoint", directory.name.partition("-")[2])
    state, previous = Checkpoint.read(place.last), place.previous.read_bytes()
    place.save({name: value for name, value in state.items() if name != part})
    place.previous.write_bytes(previous)
    assert train(*FAST, *STOP) == 0
    out = capsys.readouterr().out
    assert f"is damaged (ValueError: it has no {part}); going on from previous.pt" in out
    assert "resumed at step 8 of 20" in out
    assert results(directory) == whole


def test_the_previous_state_is_taken_where_lines_after_it_were_altered(train, stopped, capsys):
    directory, whole = stopped
    path = directory / "metrics.jsonl"
    length = Checkpoint.read(directory / "checkpoint" / "previous.pt")["metrics"]["size"]
    path.write_bytes(path.read_bytes()[: length + 3])
    assert train(*FAST, *STOP) == 0
    out = capsys.readouterr().out
    assert "is damaged (OtherMetrics: metrics.jsonl is not as it was when the checkpoint was written)" in out
    assert "resumed at step 8 of 20" in out
    assert results(directory) == whole


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_no_state_fits_the_log_the_run_begins_anew(train, stopped, capsys, damage):
    directory, whole = stopped
    path = directory / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:60])  # of the first line
    damage(path)
    assert train(*FAST, *STOP) == 0
    out = capsys.readouterr().out
    assert f"{directory}: metrics.jsonl is not as it was when the checkpoint was written; the run begins anew" in out
    assert "resumed at" not in out
    assert results(directory) == whole


def test_the_best_weights_are_those_that_the_state_knows(train, stopped):
    directory, whole = stopped
    assert not (directory / "student.best.safetensors").exists()
    (directory / "student.best.safetensors").write_bytes(b"of a time that was lost")
    assert train(*FAST, *STOP) == 0
    assert results(directory) == whole


def test_a_run_goes_on_from_a_state_from_before_there_were_checksums(train, stopped):
    directory, whole = stopped
    place = directory / "checkpoint"
    state = Checkpoint.read(place / "last.pt")
    for name, content in state.pop("best").items():
        (directory / f"{name}.best.safetensors").write_bytes(content.numpy().tobytes())
    del state["metrics"]
    torch.save(state, place / "last.pt")
    (place / "previous.pt").unlink()
    assert train(*FAST, *STOP) == 0
    assert results(directory) == whole


def test_an_amended_record_is_sealed_anew(runs):
    directory, _ = runs
    with FinishedRun.open(directory).amended() as record:
        record["metrics"]["vicinal/student/a"] = 0.5
    assert unsealed(json.loads((directory / "record.json").read_text()), "files")["metrics"]["vicinal/student/a"] == 0.5
    write_record(directory, read_record(directory))
    assert read_record(directory)["metrics"]["vicinal/student/a"] == 0.5
