"""From the command line to records, tables and networks."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kdrun
from kdrun.cli.table import main as table_main
from kdrun.core.errors import KdrunError
from kdrun.core.sums import unsealed
from kdrun.results.found import found_table
from kdrun.results.table import figure
from kdrun.runs.record import find_records
from tests.conftest import FAST, TEACHER
from tests.unit.test_progress import LINE

pytestmark = pytest.mark.slow


def records(outputs: Path):
    return dict(find_records(outputs))


@pytest.mark.slow
def test_sweep_records_table_and_no_run_twice(train, outputs, capsys):
    sweep = ["-m", *FAST, *TEACHER, "seed=0,1", "loss=ce,kd"]
    assert train(*sweep) == 0
    found = records(outputs)
    assert len(found) == 5  # four students and one teacher, which they share
    assert {r["status"] for r in found.values()} == {"done"}
    students = [r for r in found.values() if r["method"] == "distill"]
    teacher = next(r for r in found.values() if r["method"] == "supervised")
    with_kd = [r for r in students if "kd" in r["config"]["loss"]]
    assert {r["requires"].get("teacher") for r in with_kd} == {teacher["key"]}
    assert {r["metrics"]["test/teacher/top1"] for r in with_kd} == {teacher["metrics"]["test/student/top1"]}

    capsys.readouterr()
    table = found_table(outputs)
    by_hand = [r["metrics"]["test/student/top1"] for r in with_kd]
    cell = f"{100 * np.mean(by_hand):.2f} ± {100 * np.std(by_hand, ddof=1):.2f} (n=2)"
    assert cell in table.to_text()
    assert cell in table.to_markdown()
    assert "missing (0/3)" in table_main(["table=demo", f"outputs={outputs}"])

    stamps = {p: p.stat().st_mtime_ns for p in outputs.rglob("*") if p.is_file() and p.name != "multirun.yaml"}
    assert train(*sweep) == 0
    assert "4 runs, 4 done already" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in outputs.rglob("*") if p.is_file() and p.name != "multirun.yaml"} == stamps
    assert train("-m", *FAST, *TEACHER, "seed=0,1,2", "loss=ce") == 0  # only what is missing
    assert len(records(outputs)) == 6


def test_record_predictions_and_loaded_network_agree(train, outputs, capsys):
    assert train(*FAST, *TEACHER, "schedule.ema_decay=0.9", "schedule.clip_norm=1.0") == 0
    directory, record = next((d, r) for d, r in records(outputs).items() if r["method"] == "distill")
    assert directory.parent.relative_to(outputs).as_posix() == "runs/distill/digits/n50"
    assert directory.name == f"s0-{record['key']}"
    assert record["schema"] == 1
    assert record["steps"] == 20
    assert record["split"]["labeled"] == 50
    assert record["split"]["labeled_per_class"] == [5] * 10
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert set(record["seconds"]) == {"total", "train", "data", "eval", "per_image"}
    assert figure(record, "inference_per_second") == 1 / record["seconds"]["per_image"] > 1  # digits: thousands
    assert record["nets"]["student"]["ema"] is True
    assert record["best_on_val"]["step"] in (10, 20)
    assert {"test/student/top1", "test/student_raw/top1", "test/teacher/top1"} <= set(record["metrics"])
    for name in ("brier", "overconfidence", "confidence_gap", "e_aurc", "scaled_ece"):
        assert {f"test/{net}/{name}" for net in ("student", "student_raw", "teacher")} <= set(record["metrics"])
    assert {"val/teacher/temperature", "val/student/temperature", "test/student/teacher_kl"} <= set(record["metrics"])
    assert unsealed(json.loads((directory / "record.json").read_text()), "files") == record

    network = kdrun.load(directory)
    for split in ("val", "test"):
        with np.load(directory / "predictions" / f"{split}-student.npz") as file:
            index, target, logits = file["index"], file["target"], file["logits"]
        top1 = (logits.argmax(1) == target).mean()
        assert top1 == pytest.approx(record["metrics"][f"{split}/student/top1"])
        if split == "test":
            from kdrun.data.load import load_dataset
            from kdrun.data.sets.digits import Digits

            arrays = load_dataset(Digits.Config(name="digits"))
            assert (arrays.test_labels[index] == target).all()
            images = torch.from_numpy(arrays.test_images[index]).permute(0, 3, 1, 2)
            with torch.no_grad():
                torch.testing.assert_close(network(images).logits, torch.from_numpy(logits), rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(network(images.float() / 255).logits, network(images).logits)

    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/lr" in line] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "test/student/top1" in line] == [10, 20]
    assert lines[-1]["test/student/top1"] == record["metrics"]["test/student/top1"]
    told = [line.partition(" INFO ")[2] for line in (directory / "log.txt").read_text().splitlines()]
    assert "done:" in "".join(told)
    evaluated = [line[0] for line in map(LINE.fullmatch, told) if line and directory.name in line[0]]
    assert [line.split()[2] for line in evaluated] == ["10", "20"]
    assert f"test/top1 {record['metrics']['test/student/top1']:.4f}" in evaluated[-1]
    printed = capsys.readouterr().out.splitlines()
    assert set(evaluated) < set(printed)
    assert record["overview"]
    assert all(lines.count(line) == 1 for line in record["overview"] for lines in (told, printed))  # not the teacher's
    assert not (directory / "checkpoint").exists()
    with pytest.raises(KdrunError, match=r"no network 'student_2'; nearest: student \(allowed: student\)"):
        kdrun.load(directory, "student_2")
    with pytest.raises(KdrunError, match="not a run directory"):
        kdrun.load(outputs)


def test_a_run_without_its_weights_is_made_again(train, outputs):
    assert train(*FAST, *TEACHER) == 0
    teacher = next(d for d, r in records(outputs).items() if r["method"] == "supervised")
    before = (teacher / "student.safetensors").read_bytes()
    (teacher / "student.safetensors").unlink()
    assert train(*FAST, *TEACHER, "seed=1") == 0
    assert (teacher / "student.safetensors").read_bytes() == before


def test_a_teacher_that_diverges_is_tried_once(train, outputs, capsys):
    assert train("-m", *FAST, *TEACHER, "schedule.lr=1e30", "seed=0,1,2") == 1
    out = capsys.readouterr()
    assert out.out.count("supervised on digits:") == 1
    (blocked,) = [line for line in out.err.splitlines() if line.startswith("blocked: ")]
    assert "teacher resnet8-digits s0, which failed: kd-resnet8-digits-50 s0, " in blocked


@pytest.mark.slow
def test_damaged_records_stop_neither_sweep_nor_table(train, outputs, capsys):
    assert train("-m", *FAST, "method=supervised", "seed=0,1") == 0
    first, _ = records(outputs)
    (first / "record.json").write_text("{")
    assert "(n=1)" in found_table(outputs).to_text()
    assert train(*FAST, "method=supervised", "seed=0") == 2
    assert "not a readable record" in capsys.readouterr().err
    (first / "record.json").unlink()
    assert train("-m", *FAST, "method=supervised", "seed=0,1") == 0


def test_runs_of_one_seed_with_different_draws_stand_apart_in_the_table(train, outputs):
    assert train("-m", *FAST, "method=supervised", "seed=0", "dataset.split_seed=null,7,8") == 0
    table = found_table(outputs)
    assert len(table.rows) == 3
    assert all("(n=1)" in cell.text(True) for cell in table.cells.values())


def test_an_optimizer_of_torch_by_its_class_name(train, outputs):
    assert (
        train(
            *FAST,
            "method=supervised",
            "schedule.optimizer=AdamW",
            "schedule.lr=1e-3",
            "++schedule.optimizer_args={eps: 1e-6}",
        )
        == 0
    )


def test_best_on_val_is_chosen_by_validation_alone(train, outputs):
    assert train(*FAST, "method=supervised", "schedule.steps=40", "schedule.eval_every_steps=4") == 0
    directory, record = next(iter(records(outputs).items()))
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "val/student/top1" in line]
    best = max(evaluations, key=lambda line: line["val/student/top1"])  # the first of equals
    assert record["best_on_val"]["step"] == best["step"]
    assert record["best_on_val"]["metrics"]["test/student/top1"] == best["test/student/top1"]
    assert record["metrics"]["test/student/top1"] == evaluations[-1]["test/student/top1"]
    assert not [key for key in record["best_on_val"] if "test" in key]


@pytest.mark.slow
def test_a_failing_job_is_named_and_the_others_go_on(train, outputs, capsys):
    sweep = ["-m", *FAST, "method=supervised", "schedule.lr=1e30,0.05", "seed=0,1"]
    assert train(*sweep) == 1
    out = capsys.readouterr()
    found = records(outputs)
    assert sorted(r["status"] for r in found.values()) == ["done", "done", "failed", "failed"]
    failed = {d: r for d, r in found.items() if r["status"] == "failed"}
    for directory, record in failed.items():
        assert record["error"]["type"] == "NonFiniteLoss"
        assert "loss term 'ce' became" in record["error"]["message"]
        assert f"failed: {directory}: step" in out.err
        assert "Traceback" in (directory / "log.txt").read_text()
        assert not list(directory.glob("*.safetensors"))
    assert "2 of 4 runs done" in out.err
    assert "failed (0/2)" in found_table(outputs).to_text()
    stamps = {d: (d / "student.safetensors").stat().st_mtime_ns for d, r in found.items() if r["status"] == "done"}
    assert train(*sweep) == 1
    assert {d: (d / "student.safetensors").stat().st_mtime_ns for d in stamps} == stamps


def test_without_validation_images_nothing_is_best(train, outputs):
    assert train(*FAST, "method=supervised", "dataset.val_fraction=0") == 0
    ((_, record),) = records(outputs).items()
    assert record["best_on_val"] is None
    assert not [key for key in record["metrics"] if key.startswith("val/") or "scaled" in key]


def test_user_given_split_file(train, outputs, tmp_path):
    labeled, val = np.arange(0, 60), np.arange(100, 200)
    np.savez(tmp_path / "mine.npz", labeled=labeled, val=val)
    assert (
        train(*FAST, "method=supervised", "dataset.num_labels=null", f"dataset.split_file={tmp_path / 'mine.npz'}") == 0
    )
    ((directory, record),) = records(outputs).items()
    assert directory.parent.name == "n60"
    assert (record["split"]["labeled"], record["split"]["val"]) == (60, 100)
    stored = np.load(outputs / "artifacts" / "split" / record["split"]["hash"] / "split.npz")
    assert (stored["labeled"] == labeled).all()
    assert len(stored["unlabeled"]) == 1397 - 100


def test_npz_dataset_with_color_images(train, outputs, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = rng.integers(0, 256, (120, 3, 12, 12), dtype=np.uint8)
    np.savez(
        tmp_path / "d.npz",
        train_images=images[:90],
        train_labels=labels[:90],
        test_images=images[90:],
        test_labels=labels[90:],
    )
    assert (
        train(*FAST, "method=supervised", "dataset=npz", f"dataset.path={tmp_path / 'd.npz'}", "dataset.num_labels=30")
        == 0
    )
    ((_, record),) = records(outputs).items()
    assert record["dataset"] == "npz"
    assert record["split"]["labeled_per_class"] == [10, 10, 10]
    assert "top5" not in str(record["metrics"])


def test_pretrained_style_timm_network_as_student_and_teacher(train, outputs):
    assert train(
        *FAST[:1], *FAST[3:], "student=timm", "student.name=resnet10t", "student.size=32", "teacher=train",
        "teacher.model.name=test_resnet", "teacher.model.size=16", "schedule.steps=3", "teacher.steps=2",
    ) == 0  # fmt: skip
    found = records(outputs)
    assert {r["nets"]["student"]["model"] for r in found.values()} == {"resnet10t", "test_resnet"}


@pytest.mark.parametrize("decay", ["constant", "cosine", "fixmatch", "linear", "plateau"])
def test_every_decay_reaches_the_optimizer(train, outputs, decay):
    assert (
        train(
            *FAST,
            "method=supervised",
            f"schedule/decay={decay}",
            "schedule.warmup_steps=5",
            "execution.log_every_steps=1",
        )
        == 0
    )
    ((directory, _),) = records(outputs).items()
    rates = [
        json.loads(line)["train/lr"]
        for line in (directory / "metrics.jsonl").read_text().splitlines()
        if "train/lr" in line
    ]
    assert rates[0] == 0
    assert rates[4] == pytest.approx(0.04)
    assert rates[5] == pytest.approx(0.05)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(rates[5:]))
    assert (rates[-1] == rates[5]) == (decay in ("constant", "plateau"))


def test_mixup_distillation_with_a_teacher_of_either_kind(train, outputs):
    sweep = ["-m", *FAST, *TEACHER, "method=mixup_distill", "teacher.mix.kind=none,mixup", "views.mix.share=0.5"]
    assert train(*sweep) == 0
    found = records(outputs).values()
    teachers = {r["key"]: r["config"]["views"]["mix"]["kind"] for r in found if r["method"] == "supervised"}
    students = [r for r in found if r["method"] == "mixup_distill"]
    assert sorted(teachers.values()) == ["mixup", "none"]
    assert {teachers[r["requires"]["teacher"]]: r["config"]["teacher"]["mix"]["kind"] for r in students} == {
        "mixup": "mixup",
        "none": "none",
    }
    assert all({"test/student/overconfidence", "test/teacher/ece"} <= set(r["metrics"]) for r in students)
