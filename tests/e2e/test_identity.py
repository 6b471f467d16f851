"""Other data at the same place are another run; what is no data changes nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.config.job import Job
from kdrun.core.errors import KdrunError
from kdrun.results.found import found_table
from kdrun.results.plan import make_plan, on_present_data
from kdrun.results.spec import TableConfig
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records
from kdrun.training import runner
from kdrun.training.assembly import Assembly
from tests.conftest import FAST, TEACHER

RUN = [*FAST, "method=supervised", "dataset.num_labels=null", "schedule.steps=2", "schedule.batch_size=4"]


def write_tree(root: Path, classes=("cat", "dog"), test="test", seed=0, count=6) -> None:
    """BMP files, all of one size."""
    rng = np.random.default_rng(seed)
    for part, number in (("train", count), (test, 2)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for k in range(number):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / part / name / f"{k}.bmp")


def exchange(tree: Path) -> None:
    """The training images of the two classes change places: same names, same sizes."""
    cat, dog, other = tree / "train" / "cat", tree / "train" / "dog", tree / "train" / "other"
    cat.rename(other)
    dog.rename(cat)
    other.rename(dog)


@pytest.fixture
def tree(tmp_path) -> Path:
    write_tree(tmp_path / "photos")
    return tmp_path / "photos"


def folder(tree: Path) -> list[str]:
    return ["dataset=imagefolder", f"dataset.path={tree}", "dataset.size=8"]


def made(outputs: Path) -> dict[Path, dict]:
    return {directory: record for directory, record in find_records(outputs) if record["status"] == "done"}


def test_two_folders_of_a_published_name_are_two_runs(train, outputs, tmp_path):
    write_tree(tmp_path / "a", ("n01", "n02"), test="val")
    write_tree(tmp_path / "b", ("n05", "n06", "n07"), test="val", seed=1)
    run = [*RUN, "dataset=imagenet", "dataset.size=8"]
    for root in "aba":
        assert train(*run, f"dataset.root={tmp_path / root}") == 0
    assert sorted(record["nets"]["student"]["num_params"] for record in made(outputs).values()) == [5078, 5095]
    assert len(found_table(outputs).rows) == 2


def test_files_that_are_no_images_change_nothing(train, outputs, tree):
    assert train(*RUN, *folder(tree)) == 0
    for stray in ("train/cat/.DS_Store", "train/Thumbs.db", "README.md", "train/dog/notes.txt", ".cache/x.bmp"):
        (tree / stray).parent.mkdir(exist_ok=True)
        (tree / stray).write_text("x")
    for path in tree.rglob("*.bmp"):
        os.utime(path)  # copied, say
    assert train(*RUN, *folder(tree)) == 0
    assert len(made(outputs)) == 1


def test_exchanged_files_of_one_size_are_another_run_and_the_first_one_stays(train, outputs, tree, capsys):
    run = [*RUN, *folder(tree)]
    assert train(*run) == 0
    ((first, before),) = made(outputs).items()
    exchange(tree)
    assert train(*run) == 0
    assert f"{first}: what lies there is a run on other data; this is another run" in capsys.readouterr().out
    second = next(directory for directory in made(outputs) if directory != first)
    assert made(outputs)[first] == before
    exchange(tree)
    assert train(*run) == 0
    assert f"done already: {first} " in capsys.readouterr().out
    exchange(tree)
    assert train(*run) == 0
    assert f"done already: {second} " in capsys.readouterr().out
    assert len(made(outputs)) == 2
    table = found_table(outputs).to_text()
    assert table.count("(n=1)") == 2  # and no mean over one seed on two sets of images
    assert table.count("dataset=") == 2


def test_a_teacher_belongs_to_the_data_too(train, outputs, tree):
    run = [*FAST, *TEACHER, *RUN[len(FAST) + 1 :], *folder(tree), "method=distill", "teacher.steps=2"]
    assert train(*run) == 0
    exchange(tree)
    assert train(*run) == 0
    records = list(made(outputs).values())
    needed = {record["requires"]["teacher"]: record["inputs"]["dataset"] for record in records if record["requires"]}
    teachers = {record["key"]: record["inputs"]["dataset"] for record in records if not record["requires"]}
    assert needed == teachers
    assert len(set(needed.values())) == 2


def test_a_checkpoint_of_other_data_is_not_gone_on_from(train, outputs, tree, monkeypatch):
    run = [*RUN, *folder(tree), "execution.checkpoint_every_steps=1"]
    monkeypatch.setattr(runner, "_save_networks", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert train(*run) == 1
    checkpoint = next(outputs.rglob("checkpoint/last.pt"))
    before = checkpoint.read_bytes()
    monkeypatch.undo()
    exchange(tree)
    assert train(*run) == 0
    assert checkpoint.read_bytes() == before
    assert checkpoint.parent.parent not in made(outputs)


def test_a_finished_run_is_not_measured_on_other_data(train, outputs, tree):
    assert train(*RUN, *folder(tree)) == 0
    run = FinishedRun.open(next(iter(made(outputs))))
    assert len(Assembly.restored(run).arrays.train_labels) == 12
    exchange(tree)
    with pytest.raises(KdrunError, match="was trained on other data than lie there now"):
        _ = Assembly.restored(run).arrays


def test_what_a_run_read_stands_in_its_record(train, outputs, tree):
    split = tree.parent / "split.npz"
    np.savez(split, labeled=np.arange(4))
    assert train(*RUN, *folder(tree), f"dataset.split_file={split}") == 0
    ((_, record),) = made(outputs).items()
    assert sorted(record["inputs"]) == ["dataset", "dataset.path", "dataset.split_file"]
    assert all(len(value) == 64 for value in record["inputs"].values())


def test_an_older_record_has_no_data_to_compare_and_keeps_its_place(train, outputs, tree):
    from kdrun.runs.record import write_record

    assert train(*RUN, *folder(tree)) == 0
    ((directory, record),) = made(outputs).items()
    write_record(directory, {name: value for name, value in record.items() if name != "inputs"})
    exchange(tree)
    assert train(*RUN, *folder(tree)) == 0
    assert list(made(outputs)) == [directory]
    assert Job(FinishedRun.open(directory).config).directory == directory


def test_a_planned_table_shows_the_runs_on_the_data_that_are_there(train, outputs, tree):
    spec = TableConfig(seeds=[0], rows={"CE": []}, columns={"photos": [*RUN, *folder(tree)]})
    plan = make_plan("t", spec)
    assert on_present_data(plan, outputs) == plan
    assert train(*RUN, *folder(tree)) == 0
    assert on_present_data(plan, outputs) == plan
    exchange(tree)
    (run,) = on_present_data(plan, outputs).cells[0].runs
    assert run.place != plan.cells[0].runs[0].place
    assert not (outputs / run.place).exists()  # it is yet to be made
    assert train(*RUN, *folder(tree)) == 0
    assert (outputs / run.place / "record.json").is_file()
