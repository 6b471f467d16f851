"""Runs on packed images with crops at random scales, from the command line to the record."""

import json

import pytest

from kdrun.data import load as dataset
from tests.conftest import FAST
from tests.unit.test_published import write_tree

pytestmark = pytest.mark.slow

CROPS = ["views=imagenet", "views.size=12", "dataset=imagefolder", "dataset.num_labels=4", "dataset.val_fraction=0.34"]


@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_packed_and_in_memory_are_the_same_run(train, tmp_path, outputs, method):
    write_tree(tmp_path / "data")
    run = [
        *FAST, *CROPS, f"method={method}", "loss=ce", f"dataset.path={tmp_path / 'data'}", "schedule.steps=2",
        "schedule.eval_every_steps=1", "schedule.batch_size=4",
    ]  # fmt: skip
    assert train(*run, "dataset.pack.size=16") == 0
    (place,) = outputs.glob("runs/*/*/*/*/record.json")
    record = json.loads(place.read_text())
    assert record["status"] == "done"
    assert record["steps"] == 2
    assert record["metrics"]["test/student/top1"] >= 0
    (packed,) = (outputs / "artifacts" / "packed").iterdir()
    assert json.loads((packed / "spec.json").read_text())["num_images"] == 12
    place.unlink()
    assert train(*run, "dataset.size=16") == 0
    again = json.loads(place.read_text())  # in the same folder: the key knows the pixels, not where they are kept
    assert again["metrics"] == record["metrics"]


def test_unreadable_images_stand_in_the_record(train, tmp_path, outputs, capsys):
    write_tree(tmp_path / "data")
    (tmp_path / "data" / "val" / "cat" / "1.png").write_bytes(b"")
    run = [
        *FAST, *CROPS, "method=supervised", "loss=ce", f"dataset.path={tmp_path / 'data'}", "schedule.steps=1",
        "schedule.batch_size=4", "dataset.pack.size=16",
    ]  # fmt: skip
    assert train(*run) == 1
    (place,) = outputs.glob("runs/*/*/*/*/record.json")
    assert "val/cat/1.png (not an image)" in json.loads(place.read_text())["error"]["message"]
    for kept in dataset._KEPT.values():
        kept.clear()  # as in a new process
    assert train(*run) == 2  # now it is known before anything runs
    assert "dataset.skip_unreadable=true goes on without these 1 of 12 images" in capsys.readouterr().err
    assert train(*run, "dataset.skip_unreadable=true") == 0
    records = [json.loads(path.read_text()) for path in outputs.glob("runs/*/*/*/*/record.json")]
    (done,) = (record for record in records if record["status"] == "done")
    assert done["warnings"][0].startswith("1 of 12 images are unreadable and were left out")
    assert done["split"]["test"] == 5
