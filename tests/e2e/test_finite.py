"""What is not finite is a failure, and is blamed on what is not finite."""

import json
import re

import pytest
import torch

from kdrun.cli import status
from kdrun.results.found import found_table
from kdrun.runs.record import find_records, write_record
from tests.conftest import FAST
from tests.unit.test_teachers import own_state

RUN = [*FAST, "method=supervised", "schedule.steps=1"]
FILE = [*FAST, "teacher=file", "student@teacher.model=resnet8", "teacher.model.args.width=4"]


def test_divergence_in_the_last_step_fails_and_every_reader_says_so(train, outputs, capsys):
    for _ in range(2):
        assert train(*RUN, "schedule.lr=1e25") == 1
        said = "".join(capsys.readouterr())
        assert "after step 1: " in said
        assert "lower schedule.lr or set schedule.clip_norm" in said
        assert "Traceback" not in said
    ((directory, record),) = find_records(outputs)
    assert (record["status"], record["error"]["type"]) == ("failed", "NonFiniteLoss")
    assert not list(directory.glob("*.safetensors"))
    assert "NonFiniteLoss" in status.main([f"outputs={outputs}"])
    assert "failed (0/1)" in found_table(outputs).to_text()


def test_a_sweep_counts_it_as_failed(train, capsys):
    assert train("-m", *RUN, "schedule.lr=1e25,0.1") == 1
    assert "1 of 2 runs done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fc.bias", torch.inf, "teacher.path: .*fc.bias holds inf"),
        ("conv1.weight", -torch.inf, "teacher.path: .*conv1.weight holds -inf"),
        ("bn1.running_var", -1.0, "teacher.path: .*bn1.running_var holds -1, and no variance is below 0"),
        ("conv1.weight", 3e38, "teacher: what it says of an image is not finite, from its layer net.conv1 on"),
    ],
)
def test_a_teacher_that_is_not_finite_is_named_with_its_tensor(train, outputs, tmp_path, capsys, name, value, said):
    state = own_state()
    torch.save({**state, name: torch.full_like(state[name], value)}, tmp_path / "t.pt")
    assert train(*FILE, f"teacher.path={tmp_path / 't.pt'}") != 0
    err = "".join(capsys.readouterr())
    assert re.search(said, err), err
    assert "schedule.lr" not in err
    assert not list(outputs.rglob("*.safetensors"))


def test_an_older_record_without_figures_is_summed_up_without_a_traceback(train, outputs, capsys):
    assert train(*RUN) == 0
    ((directory, record),) = find_records(outputs)
    write_record(directory, {**record, "metrics": dict.fromkeys(record["metrics"])})
    train(*RUN)
    assert "Traceback" not in capsys.readouterr().err
    assert json.loads((directory / "record.json").read_text())["status"] == "done"


def test_a_run_that_goes_on_keeps_its_threads(train, outputs, spawn):
    run = [*FAST, "method=supervised", "execution.checkpoint_every_steps=1", "schedule.steps=400"]
    process = spawn(*run, "execution.threads=2")
    process.wait_for(lambda: list(outputs.rglob("checkpoint/last.pt")))
    process.kill()
    assert train(*run, "execution.threads=1", "execution.checkpoint_every_steps=null") == 0
    ((_, record),) = find_records(outputs)
    assert record["threads"] == 2
    assert train(*RUN, "seed=1") == 0
    assert torch.get_num_threads() == 1
    torch.set_num_threads(1)
