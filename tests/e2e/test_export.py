"""scripts/export.py and scripts/predict.py on two finished runs: two heads with validation, and a timm network without."""

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdrun
from kdrun.cli.evaluate import main as evaluate
from kdrun.cli.export import main as export
from kdrun.cli.predict import main as predict
from kdrun.core.errors import KdrunError, Unfinished
from kdrun.data.load import load_dataset
from kdrun.models.network import load_network
from kdrun.runs.export import forms as exports
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import read_record, write_record
from kdrun.runs.trained import open_trained
from tests.conftest import FAST, ROOT, TEACHER

pytestmark = pytest.mark.slow

QUICK = ["repeats=0", "check=9", "threads=1"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kdrun.cli.train import main

    folder = tmp_path_factory.mktemp("export") / "outputs"
    given = [*FAST, f"execution.outputs={folder}"]
    assert main([*given, *TEACHER, "method=dho"]) == 0
    plain = [word for word in given if not word.startswith("student")]
    student = ["student=timm", "student.name=test_resnet", "student.size=32"]
    assert main([*plain, *student, "method=supervised", "loss=ce", "dataset.val_fraction=0"]) == 0
    return folder


@pytest.fixture(scope="module")
def heads(outputs: Path) -> FinishedRun:
    [path] = outputs.glob("runs/dho/*/*/*/record.json")
    return FinishedRun.open(path.parent)


@pytest.fixture(scope="module")
def timm_run(outputs: Path) -> FinishedRun:
    [path] = outputs.glob("runs/supervised/digits/n50/*/record.json")
    return FinishedRun.open(path.parent)


def digits_of(run: FinishedRun) -> np.ndarray:
    return load_dataset(run.config.dataset).test_images


def pixels_of(run: FinishedRun, count: int = 7) -> torch.Tensor:
    return torch.from_numpy(digits_of(run)[:count]).permute(0, 3, 1, 2).contiguous()


def test_every_predictor_is_what_was_evaluated(heads, timm_run):
    for run in (heads, timm_run):
        for name in ("ce_head", "kd_head", "combined") if run is heads else ("student",):
            found = open_trained(run, name).classifier(pixels_of(run))
            assert torch.allclose(found, run.predictions("test", name)[0][:7], atol=1e-5)


def test_torch_export_of_two_heads(heads, tmp_path):
    out = tmp_path / "both.pt2"
    text = export([f"run={heads.record['key']}", f"outputs={heads.outputs}", "to=torch_export", f"out={out}", *QUICK])
    assert "combined of dho/digits/n50/" in text
    assert "input pixels (batch, 1, 8, 8) uint8, [0, 255]; output logits (batch, 10) float32" in text
    assert "on 9 test images: largest difference 0 " in text
    expected = heads.predictions("test", "combined")[0]
    found = torch.export.load(out).module()(pixels_of(heads))
    assert torch.allclose(found, expected[:7], atol=1e-5)
    spec = json.loads((tmp_path / "both.pt2.json").read_text())
    assert spec["class_names"] == list("0123456789")
    assert spec["temperature"] == heads.record["metrics"]["val/combined/temperature"]
    assert spec["metrics"]["test/top1"] == heads.record["metrics"]["test/combined/top1"]
    assert (spec["run"]["key"], spec["parity"]["argmax_agreement"]) == (heads.record["key"], 1)
    assert str(heads.outputs) not in json.dumps(spec)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.pt2", "both.pt2.json"]


def test_onnx_of_two_heads(heads, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package} (the extra onnx)")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra onnx)")
    out = tmp_path / "both.onnx"
    text = export([f"run={heads.directory}", "to=onnx", f"out={out}", "repeats=2", "batch=3", "threads=1"])
    assert "same class for 100.00%" in text
    assert "  batch 3    onnx  " in text
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    [taken] = session.get_inputs()
    assert (taken.name, taken.shape, taken.type) == ("pixels", ["batch", 1, 8, 8], "tensor(uint8)")
    found = session.run(["logits"], {"pixels": pixels_of(heads).numpy()})[0]
    assert np.allclose(found, heads.predictions("test", "combined")[0][:7], atol=1e-4)


def test_log_of_sum_survives_what_underflows():
    a, b = torch.tensor([-300.0, 0.0, -torch.inf]), torch.tensor([-301.0, 1.0, -200.0])
    assert torch.allclose(exports._log_of_sum(a, b), torch.logaddexp(a, b))


def test_weights_go_to_kdrun_and_to_timm(heads, timm_run, tmp_path):
    import timm

    for run, name in ((heads, "ce_head"), (timm_run, "student")):
        out = tmp_path / f"{name}.safetensors"
        text = export([f"run={run.directory}", "to=safetensors", f"predictor={name}", f"out={out}", *QUICK])
        assert "largest difference 0 " in text
        expected, pixels = run.predictions("test", name)[0][:7], pixels_of(run)
        network = kdrun.load(out)
        assert torch.allclose(network(pixels).logits, expected, atol=1e-5)

        from safetensors.torch import load_file

        spec = json.loads(Path(f"{out}.json").read_text())
        assert spec["timm"]["import"] == ("kdrun.models" if run is heads else None)
        net = timm.create_model(**spec["timm"]["create_model"])
        net.load_state_dict(load_file(out))
        assert torch.allclose(net.eval()(network.adapt(pixels)), expected, atol=1e-5)


def test_the_weights_that_were_best_on_validation_are_one_choice(heads, timm_run, tmp_path):
    out, best = tmp_path / "best.safetensors", heads.record["best_on_val"]
    words = [f"run={heads.directory}", "predictor=ce_head", "checkpoint=best_on_val"]
    assert f"weights of step {best['step']}, the best on validation images" in export(
        [*words, "to=safetensors", f"out={out}", *QUICK]
    )
    spec = json.loads(Path(f"{out}.json").read_text())
    assert (spec["run"]["checkpoint"], spec["run"]["step"]) == ("best_on_val", best["step"])
    assert spec["metrics"]["test/top1"] == best["metrics"]["test/ce_head/top1"]
    loaded = kdrun.load(heads.directory, "student", "best_on_val")
    assert loaded.class_names == kdrun.load(out).class_names == tuple("0123456789")
    expected = load_network(heads.directory / "student.best.safetensors")(pixels_of(heads)).logits
    for network in (loaded, kdrun.load(out)):
        assert torch.equal(network(pixels_of(heads)).logits, expected)
    Image.fromarray(digits_of(heads)[0, ..., 0]).save(tmp_path / "0.png")
    predict([*words, f"images={tmp_path / '*.png'}", f"out={tmp_path / 'p.csv'}"])
    [row] = rows_of(tmp_path / "p.csv")
    assert float(row["confidence"]) == pytest.approx(expected.softmax(1)[0].max().item(), abs=1e-5)
    assert float(row["calibrated_confidence"]) > 0
    for run, why in ((timm_run, "had no validation images to choose the best by"), (heads, "goes with the last step")):
        with pytest.raises(KdrunError, match=f"checkpoint=best_on_val: .*{why}"):
            export([f"run={run.directory}", "to=onnx", "checkpoint=best_on_val"])


def test_the_best_weights_evaluated_give_the_figures_of_their_evaluation(tmp_path):
    from kdrun.cli.train import main

    place = f"execution.outputs={tmp_path}"
    assert main([*FAST, "method=supervised", "schedule.steps=6", "schedule.eval_every_steps=2", place]) == 0
    [run] = [FinishedRun.open(path.parent) for path in tmp_path.glob("runs/*/*/*/*/record.json")]
    best = run.record["best_on_val"]
    text = evaluate([f"run={run.directory}", "checkpoint=best_on_val"])
    assert text.startswith(f"weights of step {best['step']}, the best on validation images")
    told = json.loads((run.directory / "evaluations" / "best_on_val.json").read_text())
    assert (told["checkpoint"], told["step"]) == ("best_on_val", best["step"])
    for name in ("test/student/top1", "val/student/nll", "val/student/temperature"):
        assert told["metrics"][name] == pytest.approx(best["metrics"][name], abs=1e-6)


def test_what_is_no_pixels_is_refused_in_a_line(heads):
    network, image = kdrun.load(heads.directory, "student"), digits_of(heads)[0]
    for given, got in (
        (image, r"numpy's ndarray \(8, 8, 1\)"), (Image.new("L", (8, 8)), "PIL's Image"),
        (torch.zeros(1, 8, 8), r"a tensor \(1, 8, 8\) float32"), (torch.zeros(1, 1, 8, 8).long(), r"a tensor \(1, 1, 8, 8\) int64"),
    ):  # fmt: skip
        with pytest.raises(KdrunError, match=rf"^pixels: a network takes a torch tensor \(B, C, H, W\), .*got {got}"):
            network(given)


def test_a_folder_is_opened_by_timm(heads, timm_run, tmp_path):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    for run, name, side in ((heads, "ce_head", 8), (timm_run, "student", 32)):
        out = tmp_path / name
        export([f"run={run.directory}", "to=hf_dir", f"predictor={name}", f"out={out}", *QUICK])
        net = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        config = resolve_model_data_config(net)
        network = run.network("student")
        assert config["input_size"] == (1, side, side)
        assert config["mean"] == pytest.approx(network.spec.mean)
        found = net(network.adapt(pixels_of(run)))
        assert torch.allclose(found, run.predictions("test", name)[0][:7], atol=1e-5)
        assert create_transform(**config) is not None
        card = (out / "README.md").read_text()
        assert f"| test/top1 | {100 * run.record['metrics'][f'test/{name}/top1']:.2f} % |" in card
        assert ("import kdrun.models" in card) == (run is heads)
        assert sorted(path.name for path in out.iterdir()) == [
            "README.md", "config.json", "kdrun.json", "model.safetensors",
        ]  # fmt: skip
    untrained = timm.create_model(f"local-dir:{out}", num_classes=3)
    assert untrained.num_classes == 3

    again = ["to=hf_dir", f"run={timm_run.directory}", f"out={out}", *QUICK]
    with pytest.raises(KdrunError, match=r"is there already; give another name, or overwrite=true"):
        export(again)
    (out / "README.md").write_text("old")
    export([*again, "overwrite=true"])
    assert (out / "README.md").read_text() != "old"
    (out / "kdrun.json").unlink()
    with pytest.raises(KdrunError, match="is no export of this form, so it is not overwritten"):
        export([*again, "overwrite=true"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ce_head", "student"]


def test_what_differs_from_the_checkpoint_is_not_left_behind(heads, tmp_path, monkeypatch):
    def spoiled(path):
        network = load_network(path)
        torch.nn.init.normal_(network.net.fc.bias)
        return network

    monkeypatch.setattr(exports, "load_network", spoiled)
    out = tmp_path / "folder" / "x.safetensors"
    out.parent.mkdir()
    with pytest.raises(
        Unfinished, match=r"differs from the checkpoint by .* on 9 test images, allowed .*nothing is left"
    ):
        export([f"run={heads.directory}", "to=safetensors", "predictor=ce_head", f"out={out}", *QUICK])
    assert list(out.parent.iterdir()) == []


def test_without_its_data_a_run_is_exported_on_random_pixels(timm_run, tmp_path):
    moved = tmp_path / "runs" / "a" / "b" / "c" / "s0"
    shutil.copytree(timm_run.directory, moved)
    record = read_record(moved)
    absent = {"name": "npz", "path": str(tmp_path / "absent.npz")}
    dataset = {**record["config"]["dataset"], **absent}
    dataset = {key: value for key, value in dataset.items() if key != "download"}
    write_record(moved, {**record, "config": {**record["config"], "dataset": dataset}})
    text = export([f"run={moved}", "to=safetensors", *QUICK, "size=8"])
    assert "on 9 images of random pixels (seed 0): " in text
    assert "classes are numbers: the dataset is not on this machine" in text
    assert "no temperature: the run has no validation images" in text
    assert str(tmp_path) not in (moved / "exports" / "student.safetensors.json").read_text()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_of_files_are_those_of_the_evaluation(heads, timm_run, tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "out.csv"
    (folder / "größe" / "数字").mkdir(parents=True)
    digits = digits_of(heads)[:12, ..., 0]
    names = [f"{'größe/数字/' if k % 2 else ''}{k:02d}.png" for k in range(12)]
    for name, image in zip(names, digits, strict=True):
        Image.fromarray(image).save(folder / name)
    call = [f"run={heads.directory}", f"images={folder}", f"out={out}", "device=cpu", "threads=1"]
    text = predict([*call, "batch=5", "top=3"])
    assert "12 images; combined, weights of step 20, the last: mean confidence 0." in text
    rows = rows_of(out)
    assert [row["path"] for row in rows] == sorted(names)
    logits = heads.predictions("test", "combined")[0][[names.index(row["path"]) for row in rows]].double()
    order = logits.argsort(dim=1, descending=True)
    for k, column in enumerate(("class", "class_2", "class_3")):
        assert [int(row[column]) for row in rows] == order[:, k].tolist()
    temperature = heads.record["metrics"]["val/combined/temperature"]
    for column, scale in (("confidence", 1.0), ("calibrated_confidence", temperature)):
        expected = (logits / scale).softmax(1).amax(1).tolist()
        assert [float(row[column]) for row in rows] == pytest.approx(expected, abs=1e-5)

    with pytest.raises(KdrunError, match=r"out\.csv: is there already"):
        predict(call)
    for wrong, line in (
        ("images=/no", "no such file"),
        ("images=/no*", "nothing matches"),
        ("predictor=x", "not one of"),
    ):
        with pytest.raises(KdrunError, match=line):  # a file that is there hides no other mistake
            predict([*[word for word in call if wrong[:6] != word[:6]], wrong])
    wide = digits[0].astype(np.uint16) * 257
    Image.fromarray(wide).save(folder / "a16.png")
    Image.fromarray(digits[0]).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(digits[0]).convert("CMYK").save(folder / "cmyk.tif")
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    text = predict([*call, "overwrite=true", "batch=2"])
    assert "15 images, 1 unreadable; combined" in text
    assert "unreadable, without a class: " in text
    told = {row["path"]: row for row in rows_of(out)}
    assert list(told) == sorted(told)
    assert {key: value for key, value in told["broken.jpg"].items() if value} == {
        "path": "broken.jpg",
        "unreadable": "not an image",
    }
    assert [row["path"] for row in told.values() if row["unreadable"]] == ["broken.jpg"]
    text = predict([*call, "overwrite=true", "skip_unreadable=true", "top=1"])
    assert "15 images, 1 unreadable; combined" in text
    assert "unreadable, left out: " in text
    assert "1 file is no image or in no class folder and was passed over (1 .txt), e.g. notes.txt" in text
    found = {row["path"]: row for row in rows_of(out)}
    assert list(found["00.png"]) == ["path", "class", "confidence", "calibrated_confidence"]
    for same in ("a16.png", "rgba.png"):
        assert {**found[same], "path": "00.png"} == found["00.png"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(digits[0])).save(folder / "turned.png", exif=exif)
    for asked, same in (([], True), (["exif=stored"], False)):
        predict([*call, "overwrite=true", "skip_unreadable=true", "top=1", *asked])
        found = {row["path"]: row for row in rows_of(out)}
        assert ({**found["turned.png"], "path": "00.png"} == found["00.png"]) == same

    one = tmp_path / "one.csv"
    text = predict([f"run={timm_run.directory}", f"images={folder / '00.png'}", f"out={one}", "device=cpu"])
    assert "no calibrated_confidence: the run has no validation images" in text
    [row] = rows_of(one)
    assert (row["path"], row["calibrated_confidence"]) == ("00.png", "")
    assert int(row["class"]) == timm_run.predictions("test", "student")[0][0].argmax()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "out.csv", "photos"]


def test_each_format_of_predictions_has_the_same_rows(heads, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra hf)")
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    digits = digits_of(heads)[:5, ..., 0]
    for name, image in zip(("a.png", "deep/b.bmp", "deep/er/c.tif", "=d.webp", "größe,\n2.png"), digits, strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "deep" / "cut.png").write_bytes((folder / "a.png").read_bytes()[:40])
    made = {}
    for form in ("csv", "jsonl", "parquet"):
        text = predict([f"run={heads.directory}", f"images={folder}", f"out={tmp_path / 'p'}.{form}", "top=2"])
        assert "5 images, 1 unreadable" in text
    made["csv"] = rows_of(tmp_path / "p.csv")
    made["jsonl"] = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").splitlines()]
    made["parquet"] = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    columns = ["path", "class", "confidence", "calibrated_confidence", "class_2", "confidence_2", "unreadable"]
    assert [list(rows[0]) for rows in made.values()] == [columns] * 3
    assert made["jsonl"] == made["parquet"]
    for plain, row in zip(made["csv"], made["jsonl"], strict=True):
        as_text = {k: "" if v is None else f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()}
        assert plain == {**as_text, "path": ("'" if row["path"].startswith("=") else "") + row["path"]}
    assert {row["path"] for row in made["jsonl"] if row["class"] is None} == {"deep/cut.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.jsonl", "p.parquet", "photos"]


def test_several_folders_and_files_are_called_as_they_were_given(heads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, image in zip(("one/x.png", "two/x.png", "two/y.png", "z.png"), digits_of(heads)[:4, ..., 0], strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    words = [f"images={given}" for given in ("two/y.png", "one", "two", str(tmp_path / "z.png"), "one/../one/x.png")]
    text = predict([f"run={heads.directory}", *words, "skip_unreadable=true"])
    assert text.startswith("images: 2 named twice, told once\n")
    assert [row["path"] for row in rows_of(tmp_path / "predictions.csv")] == [
        "two/y.png", "one/x.png", "two/x.png", str(tmp_path / "z.png"),
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["skip_unreadable=false", "skip_unreadable=true"])
def test_where_nothing_can_be_read_nothing_is_written(word, heads, tmp_path):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(KdrunError, match=r"a\.jpg \(not an image\)\n.*b\.png .*\n.*: not one readable image"):
        predict([f"run={heads.directory}", f"images={tmp_path}", f"out={tmp_path / 'p.jsonl'}", word])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "b.png"]


@pytest.mark.parametrize(
    ("script", "arguments", "line"),
    [
        ("export", [], "run: missing; a value is required\nerror: to: missing"),
        ("export", ["run=RUN", "to=onxx"], "to: 'onxx' is not allowed; nearest: onnx"),
        ("export", ["run=/nowhere", "to=onnx"], "/nowhere: not a run directory (no record.json)"),
        ("export", ["run=0123456789ab", "to=hf_dir", "outputs=/nowhere"], "run: no run with the key 0123456789ab below /nowhere"),
        ("export", ["run=UNFINISHED", "to=hf_dir"], "the run is running, not done"),
        ("export", ["run=RUN", "to=hf_dir", "predictor=student_2"], "predictor: student_2: not one of"),
        ("export", ["run=RUN", "to=hf_dir"], "combined is more than the weights of one network; choose predictor=ce_head"),
        ("export", ["run=RUN", "to=hf_dir", "predictor=ce_head", "size=9"], "size: 9: images of dataset=digits are 8x8"),
        ("export", ["run=RUN", "to=safetensors", "opset=18"], "opset: only of to=onnx, not of to=safetensors"),
        ("export", ["run=RUN", "to=hf_dir", "dynamic=false"], "dynamic: to=hf_dir takes any batch"),
        ("export", ["run=RUN", "to=onnx", "MISSING"], "to=onnx: needs onnxruntime, not installed here: pip install 'kdrun[onnx]'"),
        ("predict", ["run=RUN", "images=EMPTY"], "no images (.bmp"),
        ("predict", ["run=RUN", "images=/nowhere"], "images: /nowhere: no such file or folder"),
        ("predict", ["run=RUN", "images=/nowhere", "top=0"], "top: must be greater than or equal to 1"),
        ("predict", ["run=RUN", "images=/nowhere", "device=gpu"], "device: 'gpu' is not a device"),
        ("predict", ["run=RUN", "images=FILE", "out=photo.jpg"], "out: photo.jpg: the ending tells the format (allowed: .csv, .jsonl, .parquet)"),
        ("predict", ["run=RUN", "images=FILE", "out=p.json"], "out: p.json: the ending tells the format; nearest: .jsonl (allowed: "),
        ("predict", ["run=RUN", "images=FILE", "images=/nowhere"], "images: /nowhere: no such file or folder"),
        ("predict", ["run=/nowhere", "images=FILE"], "/nowhere: not a run directory (no record.json)"),
    ],
)  # fmt: skip
def test_mistakes_are_lines_and_exit_code_2(script, arguments, line, heads, tmp_path, monkeypatch, capsys):
    unfinished, empty, file = tmp_path / "unfinished", tmp_path / "empty", tmp_path / "x.png"
    empty.mkdir()
    Image.new("L", (8, 8)).save(file)
    write_record(unfinished, {**heads.record, "status": "running"})
    if "MISSING" in arguments:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        for name in ("onnx", "onnxscript"):
            monkeypatch.setitem(sys.modules, name, sys)
    places = {"RUN": heads.directory, "UNFINISHED": unfinished, "EMPTY": empty, "FILE": file}
    split = [word.split("=") for word in arguments if word != "MISSING"]
    given = [f"{key}={places.get(value, value)}" for key, value in split]
    given += [] if any(word.startswith("out=") for word in given) else [f"out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", [script, *given])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.startswith("error: ")
    assert not (tmp_path / "out").exists()
