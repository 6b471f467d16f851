"""Corrupted test images, in small files of the published format."""

import json

import numpy as np
import pytest
import torch

import kdrun
from kdrun.core.errors import DataError
from kdrun.metrics import evaluate_logits
from kdrun.results.found import found_table
from kdrun.runs.record import find_records
from kdrun.training.corruptions import CORRUPTIONS, EXTRA, METRICS, Corruptions
from tests.conftest import FAST, TEACHER

pytestmark = pytest.mark.slow


N = 6
SHAPE = (8, 8, 1)


@pytest.fixture
def folder(tmp_path):
    """As CIFAR-10-C: five blocks of N images a file, the labels five times."""
    rng, made = np.random.default_rng(0), tmp_path / "digits-c"
    made.mkdir()
    np.save(made / "labels.npy", np.tile(rng.integers(0, 10, N), 5))
    for name in (*CORRUPTIONS, "spatter"):
        np.save(made / f"{name}.npy", rng.integers(0, 256, (5 * N, *SHAPE), dtype=np.uint8))
    return made


def student(outputs):
    return next((d, r) for d, r in find_records(outputs) if r["method"] == "distill")


def test_every_corruption_and_severity_of_every_network(train, outputs, folder, capsys):
    assert train(*FAST, *TEACHER) == 0
    directory, before = student(outputs)
    weights = (directory / "student.safetensors").stat().st_mtime_ns
    assert not [name for name in before["metrics"] if name.startswith("corrupted")]

    assert train(*FAST, *TEACHER, f"evaluate.corruptions={folder}") == 0  # the same run, measured later
    _, record = student(outputs)
    assert (directory / "student.safetensors").stat().st_mtime_ns == weights
    assert {name: record["metrics"][name] for name in before["metrics"]} == before["metrics"]
    cells = json.loads((directory / "corruptions.json").read_text())
    assert set(cells) == {"student", "teacher"}
    network, labels = kdrun.load(directory), torch.from_numpy(np.load(folder / "labels.npy"))
    for name in ("fog", "spatter"):
        images = torch.from_numpy(np.load(folder / f"{name}.npy")).permute(0, 3, 1, 2)
        for severity in range(1, 6):
            at = slice((severity - 1) * N, severity * N)
            with torch.no_grad():
                expected = evaluate_logits(network(images[at]).logits, labels[at])
            got = cells["student"][name][str(severity)]
            assert got == pytest.approx({metric: expected[metric].item() for metric in METRICS}, abs=1e-6)
    for metric in METRICS:
        values = [cell[metric] for name in CORRUPTIONS for cell in cells["student"][name].values()]
        assert len(values) == 75
        assert record["metrics"][f"corrupted/student/{metric}"] == pytest.approx(np.mean(values))
        extra = [cell[metric] for cell in cells["teacher"]["spatter"].values()]
        assert record["metrics"][f"corrupted_extra/teacher/{metric}"] == pytest.approx(np.mean(extra))
    table = found_table(outputs, "corrupted/top1").to_text()
    assert f"{100 * record['metrics']['corrupted/student/top1']:.2f} (n=1)" in table

    stamps = {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file() and p.name != "log.txt"}
    capsys.readouterr()
    assert train(*FAST, *TEACHER, f"evaluate.corruptions={folder}") == 0
    assert "done already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def damage(folder, what):
    if what == "missing":
        (folder / "fog.npy").unlink()
    elif what == "shape":
        np.save(folder / "snow.npy", np.zeros((5 * N, 32, 32, 3), np.uint8))
    elif what == "type":
        np.save(folder / "snow.npy", np.zeros((5 * N, *SHAPE), np.float32))
    elif what == "extra":
        np.save(folder / f"{EXTRA[0]}.npy", np.zeros((N, *SHAPE), np.uint8))
    elif what == "pickle":
        np.save(folder / "labels.npy", np.array([{}], object), allow_pickle=True)
    elif what == "labels":
        np.save(folder / "labels.npy", np.full(5 * N, 10))
    elif what == "count":
        np.save(folder / "labels.npy", np.zeros(5 * N + 1, np.int64))
    else:
        (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:200])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"fog\.npy: no such file; expected the files of CIFAR-10-C"),
        ("shape", r"snow\.npy: expected uint8 \(30, 8, 8, 1\), got uint8 \(30, 32, 32, 3\)"),
        ("type", r"snow\.npy: expected uint8 \(30, 8, 8, 1\), got float32"),
        ("extra", r"gaussian_blur\.npy: expected uint8 \(30, 8, 8, 1\), got uint8 \(6,"),
        ("pickle", r"labels\.npy: not a readable \.npy file"),
        ("labels", r"labels\.npy: from 10 to 10, allowed 0 to 9"),
        ("count", r"labels\.npy: expected integers \(5 N,\), got int64 \(31,\)"),
        ("truncated", r"fog\.npy: not a readable \.npy file"),
    ],
)
def test_files_that_do_not_fit_are_named(folder, what, message):
    damage(folder, what)
    with pytest.raises(DataError, match=rf"^evaluate\.corruptions: .*{message}"):
        Corruptions(str(folder), SHAPE, 10)


def test_another_folder_is_known_by_its_labels(folder):
    first = Corruptions(str(folder), SHAPE, 10).hash
    np.save(folder / "labels.npy", np.load(folder / "labels.npy")[::-1].copy())
    assert Corruptions(str(folder), SHAPE, 10).hash != first
