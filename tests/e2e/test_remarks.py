"""What is accepted and comes to nothing is said: in the log, and in the record for as long as it is kept."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.cli.train import main
from kdrun.runs.record import find_records
from tests.conftest import FAST

pytestmark = pytest.mark.slow
PLAIN = ["method=supervised", "loss=ce", "teacher=none", *FAST, "schedule.steps=2", "schedule.eval_every_steps=null"]
PLAIN = [word for word in PLAIN if not word.startswith("dataset.num_labels")]


def warned(*words: str) -> list[str]:
    assert main([*PLAIN, *words]) == 0
    ((_, record),) = find_records(Path("outputs"))
    return [line for line in record["warnings"] if "has not learned" not in line]  # after two steps


def test_classes_without_a_labeled_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from sklearn.datasets import load_digits

    np.savez("s.npz", labeled=np.flatnonzero(load_digits().target[:500] < 2))
    (line,) = [line for line in warned("dataset.split_file=s.npz") if "labeled image" in line]
    assert line.startswith("8 of 10 classes have no labeled image: 2, 3, 4")


def test_a_class_without_a_training_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2
    np.savez(
        "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels,
        class_names=np.array(["cat", "dog", "emu"]),
    )  # fmt: skip
    lines = warned("dataset=npz", "dataset.path=d.npz", "dataset.num_labels=null")
    assert "1 of 3 classes have no training image: emu" in lines


def test_what_one_trains_on_stands_in_the_record(tmp_path, monkeypatch):
    """Of a flat folder: how much there is, which files were passed over, which ones are copies."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        for k in range(8):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(f"photos/{name}/{k}.bmp")
    shutil.copy("photos/cat/0.bmp", "photos/cat/copy.bmp")
    Path("photos/cat/notes.txt").write_text("x")
    lines = warned("dataset=imagefolder", "dataset.path=photos", "dataset.size=8", "dataset.test_fraction=0.25")
    ((_, record),) = find_records(Path("outputs"))
    assert record["overview"][0].startswith("13 training images, 4 test images; 2 classes")
    assert any("1 file is no image or in no class folder and was passed over (1 .txt)" in line for line in lines)
    assert any("1 image has the bytes of another one and stands on one side with it" in line for line in lines)
    assert record["split"]["test"] == 4


def test_a_schedule_that_does_not_come_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = warned(
        "schedule.warmup_steps=100", "schedule.eval_every_steps=50", "schedule/decay=step",
        "schedule.decay.milestones_steps=[100]",
    )  # fmt: skip
    assert [line.partition(":")[0] for line in lines] == ["schedule", "schedule"]
    assert "the warm-up of 100 steps is as long as the run, of 2" in lines[0]
    assert "an evaluation every 50 steps comes only at the end" in lines[1]


def test_no_milestone_within_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = warned("schedule/decay=step", "schedule.decay.milestones_steps=[100]")
    assert line == "schedule.decay: no milestone comes within the 2 steps of the run"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["execution.outputs={root}/priv/a/o"], "execution.outputs: {root}/priv/a/o: cannot write there (Permission denied)"),
        (["dataset=imagenet", "dataset.root={root}/priv/d"], "dataset.root: {root}/priv"),
        (["dataset=cifar10", "dataset.root={root}/priv/d", "dataset.download=false"], "dataset.root: {root}/priv"),
        (["dataset=food101", "dataset.root={root}/priv/d", "dataset.size=8"], "dataset.root: {root}/priv"),
        (["dataset=npz", "dataset.path={root}/priv/d.npz"], "dataset.path: {root}/priv"),
        (["dataset=imagefolder", "dataset.path={root}/priv/d", "dataset.size=8"], "dataset.path: {root}/priv"),
        (["plugins=[{root}/priv/x.py]"], "plugins: {root}/priv/x.py: no such Python file (Permission denied)"),
        (["dataset.split_file={root}/priv/x.npz"], "dataset.split_file: {root}/priv"),
        (["dataset.class_names={root}/priv/x"], "dataset.class_names: "),
        (["evaluate.corruptions={root}/priv/x"], "evaluate.corruptions: {root}/priv"),
        (["--config-dir", "{root}/priv/x"], "--config-dir: {root}/priv/x"),
        (["method=distill", "loss=kd", "teacher=file", "student@teacher.model=resnet8", "teacher.path={root}/priv/x"], "teacher.path: {root}/priv"),
    ],
)  # fmt: skip
def test_a_folder_that_may_not_be_searched(tmp_path, monkeypatch, capsys, words, key):
    """As root every folder may be: the operating system's answer is put in its mouth."""
    monkeypatch.chdir(tmp_path)
    stat = os.stat

    def forbidden(path, *args, **kwargs):
        if not isinstance(path, int) and "/priv/" in os.fsdecode(path):
            raise PermissionError(13, "Permission denied", os.fsdecode(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", forbidden)
    plain = ["tracker=none"] if "method=distill" in words else PLAIN
    assert main([*plain, *(word.format(root=tmp_path) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {key.format(root=tmp_path)}")


def test_a_new_classifier_that_spoils_published_weights(tmp_path, monkeypatch):
    import timm
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("test_efficientnet", num_classes=1000).state_dict(), "w.pth")
    student = ["student=test_efficientnet", "student.pretrained=true", "student.file=w.pth", "student.size=32"]
    monkeypatch.setattr("tests.e2e.test_remarks.PLAIN", [word for word in PLAIN if not word.startswith("student")])
    (line,) = [line for line in warned(*student) if "zero_head" in line]
    assert line.startswith(
        "student: test_efficientnet has published weights under a new classifier of random weights up to"
    )
    shutil.rmtree("outputs")
    assert not any("zero_head" in line for line in warned(*student, "student.zero_head=true"))
