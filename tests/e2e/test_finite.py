"""What is not finite is a failure, and is blamed on what is not finite."""

import json
import re

import pytest
import torch

from kdrun.cli import status
from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.errors import NonFiniteLoss
from kdrun.core.registry import _REGISTRY
from kdrun.losses.term import Term
from kdrun.results.found import found_table
from kdrun.runs.record import find_records, write_record
from kdrun.training.window import Window
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


class Root(Term):
    """A root at 0: it has a value, and no gradient."""

    Config = TermConfig

    @classmethod
    def needs(cls, config):
        return Needs(over_ranks="mean")

    def forward(self, pair):
        return (pair.student.logits.sum(1) * 0).sqrt()


class Hole(Root):
    """Has no value."""

    def forward(self, pair):
        return super().forward(pair) / 0


class Sum(Root):
    """One number for the batch, and does not say so."""

    def forward(self, pair):
        return pair.student.logits.square().sum()


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (Root, r"step 0: the gradient of loss term 'odd' is not finite, though its value is 0: a root, a norm"),
        (Hole, r"step 0: loss term 'odd' is nan before anything was learned"),
        (
            Sum,
            r"loss\.odd: ce gives one number for the batch, expected \(\d+,\), a loss for each image; for a statistic",
        ),
    ],
)
def test_a_loss_that_is_at_fault_is_named_and_not_the_one_beside_it(train, monkeypatch, capsys, term, said):
    ce = _REGISTRY["loss"]["ce"]

    def of(config, spec):
        return term(config, spec) if config.weight == 0.5 else ce(config, spec)

    of.Config, of.needs = ce.Config, ce.needs
    monkeypatch.setitem(_REGISTRY["loss"], "ce", of)
    assert train(*RUN, "+loss/term@loss.odd=ce", "loss.odd.weight=0.5") != 0
    err = "".join(capsys.readouterr())
    assert re.search(said, err), err
    assert "schedule.lr" not in err


def test_where_all_losses_are_nan_at_once_the_step_before_is_blamed():
    window = Window()
    window.names = ["train/loss/ce", "train/loss/kd", "train/mask_rate"]
    window.steps = [torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([torch.nan, torch.nan, 1.0])]
    with pytest.raises(
        NonFiniteLoss, match=r"step 1: all loss terms \(ce, kd\) became nan at once: after step 0 the weights"
    ):
        window.check(2, lambda step: 0.5)
    window.steps[1] = torch.tensor([1.0, torch.inf, 1.0])
    with pytest.raises(NonFiniteLoss, match=r"step 1: loss term 'kd' became inf \(learning rate factor 0.5\)"):
        window.check(2, lambda step: 0.5)


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
