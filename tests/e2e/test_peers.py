"""Runs of several students, from the command line to the record."""

import json

import pytest
import torch

import kdrun
from kdrun.cli.export import main as export
from kdrun.core.errors import KdrunError
from kdrun.data.loader import Loader
from kdrun.runs.record import find_records
from tests.conftest import FAST

pytestmark = pytest.mark.slow

STUDENTS = "students=[{name: resnet8, args: {width: 4}}, {name: resnet14, args: {width: 4}}]"
DROPOUT = ["teacher=wrn_16_1", "teacher.model.args.drop_rate=0.3", "teacher.steps=4", "method/uncertainty=mc_dropout"]
PEERS = [
    *FAST, "method=peer_distill", STUDENTS, *DROPOUT, "method.uncertainty.passes=2", "execution.log_every_steps=1",
    "+ramps.beta={key: loss.kd.weight, kind: adaptive, end: 0}", "+ramps.gamma={key: method.peer_weight, start: 0}",
    "schedule.steps=10", "schedule.eval_every_steps=2", "execution.checkpoint_every_steps=3",
]  # fmt: skip


def peers(outputs):
    [(directory, record)] = [(d, r) for d, r in find_records(outputs) if r["method"] == "peer_distill"]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return directory, record, lines


def content(outputs):
    directory, record, lines = peers(outputs)
    weights = [(directory / f"student_{k}.safetensors").read_bytes() for k in (1, 2)]
    return weights, record["metrics"], record["best_on_val"], lines


def test_weights_move_dropout_draws_and_a_killed_run_goes_on_bitwise(train, outputs, tmp_path, monkeypatch):
    assert train(*PEERS) == 0
    whole = content(outputs)
    directory, record, lines = peers(outputs)
    assert set(record["nets"]) == {"student_1", "student_2"}
    assert record["headline"] == "student_1"
    for net in ("student_1", "student_2", "ensemble", "teacher"):
        assert 0 <= record["metrics"][f"test/{net}/top1"] <= 1
    assert kdrun.load(directory, "student_2").name == "resnet14"
    export([f"run={directory}", "to=safetensors", "predictor=student_2", "repeats=0"])
    assert kdrun.load(directory / "exports" / "student_2.safetensors").name == "resnet14"
    with pytest.raises(KdrunError, match=r"ensemble is more than .* predictor=student_1\|student_2, or to=onnx"):
        export([f"run={directory}", "to=safetensors", "predictor=ensemble"])

    steps = [line for line in lines if "train/lr" in line]
    assert len(steps) == 10
    assert [line["train/method.peer_weight"] for line in steps] == pytest.approx([0.2 * k / 10 for k in range(10)])
    in_force = [line["train/loss.kd.weight"] for line in steps]
    assert in_force[0] == 0.4
    assert in_force == sorted(in_force, reverse=True)
    assert steps[0]["train/loss/student_1/peer"] == 0 < steps[9]["train/loss/student_1/peer"]

    plain = Loader.batch

    def broken(self, step):
        if step == 9:
            raise OSError("the disk is gone")
        return plain(self, step)

    directory.rename(tmp_path / "whole")
    monkeypatch.setattr(Loader, "batch", broken)
    assert train(*PEERS) == 1
    monkeypatch.undo()
    assert train(*PEERS) == 0
    assert "resumed at step 9 of 10" in (directory / "log.txt").read_text()
    assert content(outputs) == whole


def test_an_evidential_teacher_and_an_ensemble(train, outputs):
    few = ["method=uncertainty_distill", "schedule.steps=2", "schedule.eval_every_steps=null"]
    evidential = ["teacher=resnet8", "teacher.model.args.width=4", "teacher.loss=evidential", "teacher.steps=2"]
    assert train(*FAST, *few, *evidential, "method/uncertainty=evidential") == 0
    member = "{source: train, model: {name: resnet8, args: {width: 4}}, steps: 2, seed: %d}"
    members = f"teacher.members=[{member % 0}, {member % 1}]"
    assert train(*FAST, *few, "teacher=ensemble", members, "method/uncertainty=deep_ensemble") == 0
    records = [record for _, record in find_records(outputs)]
    assert all(record["status"] == "done" for record in records)
    assert sum("evidential" in record["config"]["loss"] for record in records) == 1
    assert torch.tensor([r["metrics"]["test/student/nll"] for r in records]).isfinite().all()
