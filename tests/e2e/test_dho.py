"""A run of DHO from the command line to the record, killed on the way, opened again."""

import json

import pytest
import torch

import kdrun
from kdrun.cli.evaluate import main as evaluate
from kdrun.core.errors import KdrunError
from kdrun.data.loader import Loader
from kdrun.data.views.view import View, clean
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records
from kdrun.training.assembly import Assembly
from tests.conftest import FAST, TEACHER

pytestmark = pytest.mark.slow

DHO = [
    *FAST, *TEACHER, "method=dho", "method.kd_head=mlp", "schedule.ema_decay=0.8", "schedule.clip_norm=1",
    "schedule.steps=12", "schedule.eval_every_steps=4", "execution.checkpoint_every_steps=3",
]  # fmt: skip


def own(outputs, method):
    [(directory, record)] = [(d, r) for d, r in find_records(outputs) if r["method"] == method]
    return directory, record


def content(directory):
    record = json.loads((directory / "record.json").read_text())
    files = [(directory / f"{name}.safetensors").read_bytes() for name in ("student", "method")]
    predictions = [p.read_bytes() for p in sorted((directory / "predictions").iterdir())]
    lines = (directory / "metrics.jsonl").read_text()
    return files, predictions, record["metrics"], record["best_on_val"], lines


def test_choices_are_in_the_record_and_a_killed_run_goes_on_bitwise(train, outputs, tmp_path, monkeypatch):
    assert train(*DHO) == 0
    directory, record = own(outputs, "dho")
    whole, metrics = content(directory), record["metrics"]
    assert record["headline"] == "combined"
    assert list(record["nets"]) == ["student"]
    for net in ("ce_head", "kd_head", "combined", "combined_raw", "teacher"):
        assert 0 <= metrics[f"test/{net}/top1"] <= 1

    # what was chosen is the best on the validation images, and the test images were combined with it
    run = FinishedRun.open(directory)
    (ce, target), (second, _) = (run.predictions("val", net) for net in ("ce_head", "kd_head"))
    rebuilt = Assembly.restored(run)
    chosen = rebuilt.method.choice().best({"ce_head": ce, "kd_head": second}, target)
    assert (metrics["val/combined/ce_share"], metrics["val/combined/kd_head_temperature"]) == pytest.approx(chosen)
    assert metrics["val/combined/top1"] >= max(metrics["val/ce_head/top1"], metrics["val/kd_head/top1"])
    lines = [json.loads(line) for line in whole[-1].splitlines()]
    assert len([line for line in lines if "val/combined/ce_share" in line]) == 3
    conflicts = [line["train/gradient_conflict"] for line in lines if "train/gradient_conflict" in line]
    assert [value is not None for value in conflicts] == [
        True,
        True,
        False,
    ]  # of steps 5 and 10; 11 and 12 are not measured

    # opened again: both heads and what was chosen
    images = torch.from_numpy(rebuilt.arrays.test_images)
    index = torch.arange(len(images))
    with torch.no_grad():
        again = rebuilt.predict(View(clean(images, index), index))["combined"]
    assert torch.allclose(again, run.predictions("test", "combined")[0], atol=1e-4)
    assert kdrun.load(directory, "student").name == "resnet8"
    with pytest.raises(KdrunError, match="no network 'combined'"):
        kdrun.load(directory)

    # evaluated again with other choices, which the run itself does not take over
    def again_with(*keys):
        evaluate([f"run={directory}", "name=again", *keys])
        return json.loads((directory / "evaluations" / "again.json").read_text())["metrics"]

    for share, head in ((0.0, "kd_head"), (1.0, "ce_head")):
        found = again_with("method.combination=fixed", f"method.ce_share={share}")
        assert found["test/combined/top1"] == found[f"test/{head}/top1"] == pytest.approx(metrics[f"test/{head}/top1"])
        assert found["test/teacher/top1"] == pytest.approx(metrics["test/teacher/top1"])
        assert "val/combined/ce_share" not in found
    found = again_with("method.ce_shares=[0.35]", "method.kd_head_temperatures=[3]")
    assert (found["val/combined/ce_share"], found["val/combined/kd_head_temperature"]) == pytest.approx((0.35, 3))
    assert content(directory) == whole

    plain = Loader.batch

    def broken(self, step):
        if step == 8:
            raise OSError("the disk is gone")
        return plain(self, step)

    directory.rename(tmp_path / "whole")
    monkeypatch.setattr(Loader, "batch", broken)
    assert train(*DHO) == 1
    monkeypatch.undo()
    assert train(*DHO) == 0
    assert "resumed at step 6 of 12" in (directory / "log.txt").read_text()
    assert content(directory) == whole


def test_one_head_with_surgery_and_bf16(train, outputs):
    few = ["schedule.steps=3", "schedule.eval_every_steps=null", "schedule.clip_norm=1", "schedule.precision=bf16"]
    assert train(*FAST, *TEACHER, "method=sho", "method.pcgrad=true", "method.concatenate=false", *few) == 0
    _, record = own(outputs, "sho")
    assert record["status"] == "done"
    assert record["headline"] == "student"
