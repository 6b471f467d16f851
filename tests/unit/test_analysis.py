"""scripts/analyze.py, and finished runs opened again."""

import json
import math
import runpy
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

import kdrun
from kdrun.cli.analyze import main
from kdrun.config.key import run_directory
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.data.views.view import clean
from kdrun.methods.uncertainty import confident_errors, confident_errors_warning
from kdrun.results.analysis.linear_probe import Options, best_probe
from kdrun.results.analysis.teacher import entropy_deciles
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records, read_record, write_record
from kdrun.training.assembly import Assembly
from kdrun.training.evaluator import Evaluator
from tests.conftest import FAST, ROOT, TEACHER

SURE, UNSURE = [20.0, 0, 0, 0], [0.0, 0, 0, 0]


def test_deciles_go_from_sure_to_unsure_and_hold_every_image_once():
    logits = torch.tensor([UNSURE, SURE, [2.0, 0, 0, 0], SURE, [1.0, 0, 0, 0]])
    target = torch.tensor([3, 0, 0, 1, 1])
    groups = entropy_deciles(logits, target, groups=3)
    assert [g.images for g in groups] == [2, 2, 1]
    assert [g.accuracy for g in groups] == [0.5, 0.5, 0]
    assert [g.errors for g in groups] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert groups[0].entropy == pytest.approx(0, abs=1e-6)
    assert (groups[0].weight, groups[0].confidence) == pytest.approx((1, 1), abs=1e-6)
    assert groups[2].entropy == pytest.approx(math.log(4))
    assert groups[2].weight == pytest.approx(0, abs=1e-6)
    assert len(entropy_deciles(logits, target)) == 5  # fewer images than groups


def test_errors_that_the_teacher_is_sure_of_are_counted_and_warned_of():
    logits = torch.tensor([SURE, SURE, UNSURE, SURE])
    assert confident_errors(logits, torch.tensor([0, 1, 1, 0])) == 0.5
    assert confident_errors_warning(logits, torch.tensor([0, 1, 1, 0]), "val") is None  # half does not dominate
    assert confident_errors(logits, torch.tensor([0, 0, 0, 0])) == 0
    assert confident_errors(logits, torch.tensor([1, 1, 0, 1])) == 1
    warning = confident_errors_warning(logits, torch.tensor([1, 1, 1, 0]), "val")
    assert warning is not None
    assert "67% of its errors on the val images" in warning


def one_hot(target: torch.Tensor, classes: int = 10) -> torch.Tensor:
    return 20 * torch.nn.functional.one_hot((target + 1) % classes, classes).float()


def test_a_run_is_opened_again_and_its_teacher_judged(train, outputs, monkeypatch, tmp_path, capsys):
    plain = Evaluator.logits

    def sure_and_wrong(self, predict, whose=""):
        out = plain(self, predict, whose)
        return {key: one_hot(self.splits[key[0]][2]) if key[1] == "teacher" else z for key, z in out.items()}

    monkeypatch.setattr(Evaluator, "logits", sure_and_wrong)
    assert train(*FAST, *TEACHER, "method=uncertainty_distill", "execution.eval_batch_size=100") == 0
    monkeypatch.undo()
    [(directory, record)] = [(d, r) for d, r in find_records(outputs) if r["method"] == "uncertainty_distill"]
    [warning] = record["warnings"]
    assert "sure of 100% of its errors on the val images" in warning

    moved = tmp_path / "elsewhere"
    shutil.move(outputs, moved)
    directory = moved / directory.relative_to(outputs)
    run = FinishedRun.open(directory)
    assert run_directory(run.config) == directory
    rebuilt = Assembly.restored(run)
    images = torch.from_numpy(rebuilt.arrays.test_images)
    target = torch.from_numpy(rebuilt.arrays.test_labels)
    again = Evaluator({"test": (images, torch.arange(len(images)), target)}, 100).logits(rebuilt.predict)
    logits, targets = run.predictions("test", "student")
    assert torch.equal(targets, target)
    assert torch.equal(again["test", "student"], logits)
    teacher_run = run.required("teacher")
    assert torch.equal(again["test", "teacher"], FinishedRun.open(teacher_run).predictions("test", "student")[0])

    record = read_record(directory)
    write_record(
        directory, {**record, "warnings": ["another" if line == warning else line for line in record["warnings"]]}
    )
    text = main(["teacher", f"run={directory}", "split=val"])
    assert "errors: 100.00% of the images, 100.00% of their weight; 100.0% of the errors have a weight" in text
    assert read_record(directory)["warnings"] == ["another", warning]
    main(["teacher", f"run={directory}", "split=val"])
    assert read_record(directory)["warnings"] == ["another", warning]  # once

    told = main(["linear_probe", f"run={directory}", "labels=labeled", "c=0.1", "c=1"])
    assert "features of student, 50 labels" in told
    found = json.loads((directory / "analysis" / "linear_probe_labeled.json").read_text())
    assert [one["c"] for one in found["tried"]] == [0.1, 1]
    assert read_record(directory)["metrics"]["linear_probe_labeled/student/top1"] == found["top1"]
    [kept] = (directory / "analysis" / "features").glob("*/features.safetensors")
    features, network = load_file(kept), kdrun.load(directory)
    with torch.no_grad():
        seen = network(clean(images, torch.arange(400)), ("prelogits",)).features["prelogits"]
    torch.testing.assert_close(features["test"], seen, atol=1e-5, rtol=1e-5)
    stamp = kept.stat().st_mtime_ns
    assert "1257 labels" in main(["linear_probe", f"run={directory}", "c=1"])
    assert kept.stat().st_mtime_ns == stamp  # computed once

    with pytest.raises(KdrunError, match=r"no predictions test-teacher; it has test-student"):
        main(["teacher", f"run={teacher_run}"])
    with pytest.raises(KdrunError, match=r"no network 'other'"):
        kdrun.load(directory, "other")
    shutil.rmtree(teacher_run)
    with pytest.raises(KdrunError, match=r"its teacher \(run \w+\) is not below"):
        Assembly.restored(run)


def test_a_probe_is_chosen_by_validation_images_and_learns_what_is_linear():
    torch.manual_seed(0)
    x, noise = torch.randn(300, 2), torch.randn(300, 4)
    target = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    found = {name: torch.cat([x[part], noise[part]], 1) for name, part in
             (("train", slice(0, 60)), ("val", slice(60, 180)), ("test", slice(180, 300)))}  # fmt: skip
    labels = {"train": target[:60], "val": target[60:180], "test": target[180:]}
    options = Options(run=["x"])
    chosen, tried = best_probe(found, labels, 7, options)  # three classes without an image
    best = max(tried, key=lambda one: (one["val_top1"], -one["val_nll"]))
    assert chosen["c"] == best["c"]
    assert chosen["top1"] > 0.7
    assert chosen["top5"] >= chosen["top1"]
    other, again = best_probe(found, {**labels, "test": torch.zeros(120, dtype=torch.int64)}, 7, options)
    assert (other["c"], again) == (chosen["c"], tried)  # whatever the test images are
    two = {name: (part > 1).long() for name, part in labels.items()}
    binary, _ = best_probe(found, two, 2, Options(run=["x"], c=[1.0], max_iter=2))
    assert binary["top1"] > 0.7
    assert not binary["converged"]
    assert "top5" not in binary


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "command line: not an analysis (allowed: linear_probe, propagation, teacher, vicinal"),
        (["teachr", "run=x"], "teachr: not an analysis; nearest: teacher"),
        (["teacher"], "run: missing"),
        (["teacher", "run=x", "split=train"], "split: 'train' is not allowed (allowed: test, val)"),
        (["teacher", "run=x", "batches=3"], "batches: unknown key (allowed: run, split)"),
        (["teacher", "run=x", "split=val", "split=test"], "split: given twice, val and test; leave one out"),
        (["vicinal", "run=x", "x"], "x: write key=value (allowed: batch_size, batches, run"),
        (["vicinal", "run=x", "batches=0"], "batches: must be greater than 0, got '0'"),
        (["vicinal", "run=x", "batches=ten"], "batches: must be a valid integer"),
        (["linear_probe", "run=x", "c=0"], "c.0: must be greater than 0"),
        (["linear_probe", "run=x", "labels=some"], "labels: 'some' is not allowed (allowed: all, labeled)"),
        (["teacher", "run=/nowhere"], "/nowhere: not a run directory (no record.json)"),
        (["vicinal", "run=/nowhere"], "/nowhere: not a run directory (no record.json)"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analyze.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / "analyze.py"), run_name="__main__")
    assert stopped.value.code == 2
    [told] = capsys.readouterr().err.splitlines()
    assert line in told
    with pytest.raises((ConfigError, KdrunError)):
        main(arguments)
