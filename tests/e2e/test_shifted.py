"""ImageNet-V2, -Sketch, -A and -R, in small files of their layouts: the class maps, and what a run's record gets."""

import json

import pytest
import torch

import kdrun
from kdrun.cli.evaluate import main as evaluate
from kdrun.core.errors import DataError
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.data.images import decode
from kdrun.data.load import load_dataset
from kdrun.metrics import evaluate_logits
from kdrun.training import shifted
from kdrun.training.shifted import FOLDERS, ShiftedSet
from tests.unit.test_published import write_image

pytestmark = pytest.mark.slow

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An ImageNet of four classes, and the four sets."""
    monkeypatch.setattr(shifted, "NUM_CLASSES", 4)
    for k, wnid in enumerate(WNIDS):
        for split, value in (("train", 10), ("val", 12)):
            for i in range(3):
                write_image(tmp_path / "imagenet" / split / wnid / f"{i}.JPEG", (9, 7), color=60 * k + value + i)
        # as text, 10 would stand before 2: only what the folders are called counts
        write_image(tmp_path / FOLDERS["imagenet_v2"] / str(k) / "x.jpeg", color=60 * k)
        write_image(tmp_path / FOLDERS["imagenet_sketch"] / wnid / "sketch_0.JPEG", color=60 * k)
    for name, some in (("imagenet_a", (3, 1)), ("imagenet_r", (0, 3, 1))):
        for k in some:
            for i in range(2):
                write_image(tmp_path / FOLDERS[name] / WNIDS[k] / f"{i}.jpg", (8, 8), color=60 * k + i)
        (tmp_path / FOLDERS[name] / "README.txt").write_text("not a class")
    return tmp_path


def config_of(root, **keys):
    keys = {"name": "imagenet", "root": str(root / "imagenet"), "size": 8, **keys}
    return build(lookup("dataset", "imagenet", "").Config, keys, "dataset")


def test_class_maps(root):
    config = config_of(root)
    names = load_dataset(config).class_names
    classes = {name: ShiftedSet(name, root, config, names) for name in FOLDERS}
    assert {name: part.classes for name, part in classes.items()} == {
        "imagenet_v2": [0, 1, 2, 3], "imagenet_sketch": [0, 1, 2, 3], "imagenet_a": [1, 3], "imagenet_r": [0, 1, 3],
    }  # fmt: skip
    assert classes["imagenet_a"].targets.tolist() == [0, 0, 1, 1]
    assert classes["imagenet_r"].targets.tolist() == [0, 0, 1, 1, 2, 2]
    images = classes["imagenet_v2"].files.index_select(0, torch.arange(4))
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0, 60, 120, 180], abs=3)
    assert len({part.hash for part in classes.values()}) == 4
    some = config_of(root, classes=[WNIDS[1], WNIDS[3]])  # of a run on some classes, those that it shares with the set
    v2 = ShiftedSet("imagenet_v2", root, some, load_dataset(some).class_names)
    assert (v2.classes, v2.targets.tolist()) == ([0, 1], [0, 1])
    images = v2.files.index_select(0, torch.arange(2))
    assert images[:, 0, 0, 0].tolist() == pytest.approx([60, 180], abs=3)  # counted through all of ImageNet's


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("imagenet_r", lambda r: (r / "imagenet-r").rename(r / "elsewhere"), r"imagenet-r is not there; put imagenet_r"),
        ("imagenet_v2", lambda r: (r / "imagenet/train/n01440764").rename(r / "gone"), "train has 3 class folders"),
        ("imagenet_v2", lambda r: (r / FOLDERS["imagenet_v2"] / "3").rename(r / FOLDERS["imagenet_v2"] / "7"), "folder 7 is no number from 0 to 3"),
        ("imagenet_a", lambda r: (r / "imagenet-a/n01443537").rename(r / "imagenet-a/n09"), "1 of its 2 classes .* two or more"),
    ],
)  # fmt: skip
def test_what_does_not_fit(root, name, spoil, message):
    config = config_of(root)
    names = load_dataset(config).class_names
    spoil(root)
    with pytest.raises(DataError, match=rf"^evaluate\.sets: .*{message}"):
        ShiftedSet(name, root, config, names)
    with pytest.raises(DataError, match=r"dataset=digits has no WordNet ids"):
        ShiftedSet(name, root, build(lookup("dataset", "digits", "").Config, {"name": "digits"}, ""), ("0", "1"))


def test_a_finished_run_is_measured_on_them(root, train, outputs, capsys):
    arguments = [
        "dataset=imagenet", f"dataset.root={root / 'imagenet'}", "dataset.pack.size=8", "method=supervised", "loss=ce",
        "teacher=none", "tracker=none", "student=resnet8", "student.args.width=4", "schedule.steps=2",
        "schedule.batch_size=4", "schedule.eval_every_steps=null", "execution.device=cpu", "execution.threads=1",
    ]  # fmt: skip
    assert train(*arguments) == 0
    sets = ["evaluate.sets=[imagenet_a,imagenet_v2]", f"evaluate.root={root}"]
    assert train(*arguments, *sets) == 0
    (path,) = outputs.glob("runs/*/*/*/*/record.json")
    record = json.loads(path.read_text())
    assert set(record["sets"]) == {"imagenet_a", "imagenet_v2"}
    files = sorted((root / "imagenet-a").rglob("*.jpg"))
    images, _ = decode(files, 8)
    with torch.no_grad():
        logits = kdrun.load(path.parent)(torch.from_numpy(images).permute(0, 3, 1, 2)).logits
    expected = evaluate_logits(logits[:, [1, 3]], torch.tensor([0, 0, 1, 1]))
    for metric in ("top1", "nll", "ece", "overconfidence"):
        assert record["metrics"][f"imagenet_a/student/{metric}"] == pytest.approx(expected[metric].item(), abs=1e-6)
    evaluate([f"run={path.parent}", "evaluate.sets=[imagenet_a]", f"evaluate.root={root}", "name=a"])
    again = json.loads((path.parent / "evaluations" / "a.json").read_text())["metrics"]
    assert again == {key: value for key, value in record["metrics"].items() if key.startswith("imagenet_a/")}
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    assert train(*arguments, *sets) == 0  # done: nothing is measured again
    assert path.stat().st_mtime_ns == before
    assert train(*arguments, "evaluate.sets=[imagenet_r]", "evaluate.root=/nowhere") == 2
    assert "evaluate.sets: /nowhere/imagenet-r is not there; put imagenet_r there" in capsys.readouterr().err
