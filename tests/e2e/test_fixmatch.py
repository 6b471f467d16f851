"""FixMatch and KD-FixMatch from the command line: shared outer runs, trusted labels, other pools."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from kdrun.cli.table import main as table_main
from kdrun.core.errors import KdrunError
from kdrun.core.schema import build
from kdrun.runs.record import find_records
from tests.conftest import FAST

pytestmark = pytest.mark.slow

SHORT = [
    *FAST, "schedule.steps=6", "schedule.eval_every_steps=3", "execution.log_every_steps=2", "loss=ce",
    "method.unlabeled_ratio=2",
]  # fmt: skip
LOW = ["method.threshold=0.2", "method.select_threshold=0.1"]  # six steps make nobody sure


def records(outputs, method):
    return [(d, r) for d, r in find_records(outputs) if r["method"] == method]


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_curves_of_mask_confidence_and_pseudo_labels(train, outputs):
    assert train(*SHORT, "method=fixmatch", "method.threshold=0") == 0
    ((directory, record),) = records(outputs, "fixmatch")
    logged = [line for line in lines(directory) if "train/mask_rate" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    for line in logged:
        assert line["train/mask_rate"] == 1
        assert 0 < line["train/pseudo_label_accuracy"] <= 1
        assert "train/guesses_right" not in line
    assert record["split"]["labeled"] == 50
    assert record["split"]["unlabeled"] == 1257


def test_a_mask_of_nothing_has_no_accuracy(train, outputs):
    assert train(*SHORT, "method=fixmatch", "method.threshold=1") == 0
    ((directory, _),) = records(outputs, "fixmatch")
    logged = [line for line in lines(directory) if "train/mask_rate" in line]
    assert {line["train/mask_rate"] for line in logged} == {0}
    assert not any("train/pseudo_label_accuracy" in line for line in logged)


def test_outer_runs_and_trusted_labels_are_made_once(train, outputs):
    assert train(*SHORT, *LOW[:1], "method=fixmatch") == 0
    ((outer, outer_record),) = records(outputs, "fixmatch")
    before = (outer / "record.json").stat().st_mtime_ns
    assert train("-m", *SHORT, *LOW, "method=kd_fixmatch", "loss=ce,sce", "method.selector=kmeans,confidence") == 0
    assert len(records(outputs, "fixmatch")) == 1
    assert (outer / "record.json").stat().st_mtime_ns == before
    inner = records(outputs, "kd_fixmatch")
    assert len(inner) == 4
    folders = sorted((outputs / "artifacts" / "trusted").glob("*/spec.json"))
    assert len(folders) == 2  # one for each selector
    for _, record in inner:
        assert record["requires"] == {"outer": outer_record["key"]}
        trusted = record["artifacts"]["trusted_label"]
        assert trusted["outer_key"] == outer_record["key"]
        assert 0 < trusted["coverage"] <= 1
        assert 0 <= trusted["precision"] <= 1


def test_the_trusted_file_holds_what_was_chosen(train, outputs):
    from safetensors.torch import load_file

    assert train(*SHORT, *LOW, "method=kd_fixmatch") == 0
    (spec_file,) = (outputs / "artifacts" / "trusted").glob("*/spec.json")
    spec, found = json.loads(spec_file.read_text()), load_file(spec_file.with_name("trusted.safetensors"))
    split = np.load(next((outputs / "artifacts" / "split").glob("*/split.npz")))
    assert np.array_equal(found["index"], split["unlabeled"])
    from kdrun.data.sets.digits import Digits

    truth = Digits.load(Digits.Config(name="digits")).train_labels[found["index"]]
    chosen = found["selected"].numpy().astype(bool)
    assert spec["coverage"] == pytest.approx(chosen.mean())
    assert spec["precision"] == pytest.approx((found["label"].numpy() == truth)[chosen].mean())
    assert (found["confidence"].numpy()[chosen] >= 0.1).all()
    assert (found["cluster"].numpy()[chosen] >= 0).all()


def test_nothing_to_trust_is_said_and_training_is_fixmatch(train, outputs, caplog):
    strict = [*SHORT, "method=kd_fixmatch", "method.threshold=0.2", "method.select_threshold=1"]
    assert train("-m", *strict, "method.merge=heuristic1,inner_only") == 0
    runs = records(outputs, "kd_fixmatch")
    assert len(runs) == 2
    weights = {(d / "student.safetensors").read_bytes() for d, _ in runs}
    assert len(weights) == 1, "without trusted labels, Heuristic 1 is FixMatch, bit for bit"
    for _, record in runs:  # the second run finds the labels made, and must say it all the same
        (warning,) = [w for w in record["warnings"] if "no label is trusted" in w]
        assert "method.select_threshold=1" in warning
        assert warning.endswith("training goes on as FixMatch")
        assert record["artifacts"]["trusted_label"]["coverage"] == 0


def test_the_best_checkpoint_may_label_the_pool(train, outputs):
    best = [*SHORT, *LOW, "method=kd_fixmatch", "method.outer.checkpoint=best_on_val", "schedule.ema_decay=0.9"]
    assert train(*best) == 0
    ((outer, _),) = records(outputs, "fixmatch")
    assert (outer / "student.best.safetensors").is_file()
    ((_, record),) = records(outputs, "kd_fixmatch")
    assert record["artifacts"]["trusted_label"]["net"] == "student.best"
    # the outer run is there, but was evaluated at other steps: its best checkpoint is not the one that is asked for
    assert train(*best, "schedule.eval_every_steps=2") == 1
    (failed,) = [r for _, r in records(outputs, "kd_fixmatch") if r["status"] == "failed"]
    assert "eval_every_steps=3, this run asks for 2" in failed["error"]["message"]


def test_another_network_may_be_the_outer(train, outputs):
    assert train(*SHORT, *LOW, "method=kd_fixmatch", "method.outer.model={name: test_resnet, size: 16}") == 0
    ((_, outer),) = records(outputs, "fixmatch")
    assert outer["nets"]["student"]["model"] == "test_resnet"


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_an_unlabeled_pool_from_elsewhere(train, outputs, tmp_path, kind):
    rng = np.random.default_rng(0)
    if kind == "npz":
        path = tmp_path / "pool.npz"
        np.savez(path, images=rng.integers(0, 256, (70, 8, 8), dtype=np.uint8))
    else:
        path = tmp_path / "pool"
        (path / "deep").mkdir(parents=True)
        for i in range(70):
            Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path / "deep" / f"{i}.png")
    arguments = [*SHORT, *LOW, "method=kd_fixmatch", f"dataset.unlabeled={path}"]
    assert train(*arguments) == 0
    ((directory, record),) = records(outputs, "kd_fixmatch")
    assert record["split"]["unlabeled"] == 70
    assert record["split"]["labeled"] == 50
    assert record["artifacts"]["trusted_label"]["precision"] is None  # nobody knows
    assert not any("train/pseudo_label_accuracy" in line for line in lines(directory))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fixmatch", "method.threshold=1.5"], "method.threshold: "),
        (["method=kd_fixmatch", "method.select_threshold=-1"], "method.select_threshold: "),
        (["method=kd_fixmatch", "method.merge=both"], "method.merge: "),
        (["method=kd_fixmatch", "schedule.steps=8", "method.merge=switch_at:8"], "it never switches"),
        (["method=fixmatch", "dataset.num_labels=5000"], "dataset.num_labels: 5000"),
        (["method=fixmatch", "dataset.unlabeled=nowhere"], "dataset.unlabeled: nowhere"),
        (["method=supervised", "loss=kd", "teacher=resnet8"], "loss.kd: kd works against the teacher"),
        (
            ["method=kd_fixmatch", "method.outer.checkpoint=best_on_val", "dataset.val_fraction=0"],
            "method.outer.checkpoint: best_on_val needs validation images",
        ),
        (["method=fixmatch", "views.strong.cutout=9"], "views.strong.cutout: 9 is too wide"),
    ],
)
def test_refused_in_one_line(train, outputs, capsys, overrides, message):
    assert train(*FAST, "loss=ce", *overrides) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not outputs.exists()


def test_a_pool_of_other_shape_is_refused(train, tmp_path, capsys):
    np.savez(tmp_path / "pool.npz", images=np.zeros((5, 9, 9), np.uint8))
    assert train(*FAST, "loss=ce", "method=fixmatch", f"dataset.unlabeled={tmp_path / 'pool.npz'}") == 2
    assert "images are (9, 9, 1), the training images (8, 8, 1)" in capsys.readouterr().err


def test_tables_show_figures_of_artifacts_and_curves(train, outputs, monkeypatch, tmp_path):
    path = tmp_path / "few.yaml"
    path.write_text(
        "metric: test/top1\nseeds: [0]\n"
        "rows: {FixMatch: [method=fixmatch], KD: [method=kd_fixmatch, method.select_threshold=0.1]}\n"
        f"columns: {{digits: {json.dumps([*SHORT, 'method.threshold=0.2'])}}}\n"
    )
    monkeypatch.setattr(
        "kdrun.results.spec.read_conf", lambda _, name, cls: build(cls, yaml.safe_load(path.read_text()), name)
    )
    assert train(*SHORT, *LOW, "method=kd_fixmatch") == 0
    asked = ["table=few", f"outputs={outputs}", "format=markdown"]
    ((_, record),) = records(outputs, "kd_fixmatch")
    precision = 100 * record["artifacts"]["trusted_label"]["precision"]
    text = table_main([*asked, "metric=trusted_label/precision"])
    assert f"| KD | {precision:.2f} (n=1) |" in text
    assert "| FixMatch |  |" in text, "a method without trusted labels has an empty cell"
    with pytest.raises(KdrunError, match="has no trusted_label"):
        table_main([*asked, "metric=trusted_label/precison"])

    curve = table_main([*asked, "metric=train/mask_rate", "curve=2"])
    assert " 4 | 6 |" in curve
    ((directory, _),) = records(outputs, "fixmatch")
    (logged,) = [x["train/mask_rate"] for x in lines(directory) if x["step"] == 6 and "train/mask_rate" in x]
    assert f"{100 * logged:.2f} (n=1) |" in curve
    with pytest.raises(KdrunError, match="no run has logged train/mask"):
        table_main([*asked, "metric=train/mask", "curve=2"])
    with pytest.raises(KdrunError, match="curve: give metric="):
        table_main(["curve=2"])
