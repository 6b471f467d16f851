"""bf16 autocast, torch.compile and fused optimizers stay near float32, eager and foreach, and are keys of their own."""

import json
import shutil

import numpy as np
import pytest

import kdrun
from kdrun.runs.record import find_records
from tests.conftest import FAST, TEACHER

pytestmark = pytest.mark.slow

SHORT = [*FAST, *TEACHER, "loss=wttm", "execution.log_every_steps=1", "schedule.lr=0.01"]
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def runs_by(outputs, key):
    """Value of schedule.`key` -> (directory, losses by step), of the distilled runs."""
    found = {}
    for directory, record in find_records(outputs):
        if record["method"] == "distill":
            lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
            losses = [line["train/loss/wttm"] for line in lines if "train/loss/wttm" in line]
            found[record["config"]["schedule"][key]] = (directory, losses)
    return found


def test_bf16_is_near_float32(train, outputs):
    assert train("-m", *SHORT, "schedule.precision=fp32,bf16") == 0
    runs = runs_by(outputs, "precision")
    for directory, _ in runs.values():
        assert np.load(directory / "predictions" / "test-student.npz")["logits"].dtype == np.float32
    full, half = runs["fp32"][1], runs["bf16"][1]
    assert half != full
    # 8 bits of mantissa: 0.4 % a rounding, some of it summed over layers and steps
    assert half[0] == pytest.approx(full[0], rel=0.03)
    # later steps part ways, as two float32 machines do; they stay together on the scale of the first loss
    assert half == pytest.approx(full, abs=0.1 * full[0])


def test_fused_is_near_foreach(train, outputs):
    assert train("-m", *SHORT, "schedule.fused=false,true") == 0
    runs = runs_by(outputs, "fused")
    assert runs[False][0] != runs[True][0]
    assert runs[True][1] == pytest.approx(runs[False][1], rel=1e-3)


@compiler
def test_compiled_is_near_eager(train, outputs):
    short = [*SHORT, "schedule.steps=6", "schedule.eval_every_steps=3"]
    assert train("-m", *short, "schedule.compile=false,true") == 0
    runs = runs_by(outputs, "compile")
    assert set(runs) == {None, "default"}  # what false and true mean in the record
    assert runs["default"][1] == pytest.approx(runs[None][1], rel=1e-3)
    assert runs["default"][1] != runs[None][1], "other kernels round otherwise: equal losses mean nothing was compiled"
    directory = runs["default"][0]
    assert all(name.startswith("net.") for name in kdrun.load(directory).state_dict())


def test_compile_without_a_compiler_is_one_line(train, outputs, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert train(*FAST, "method=supervised", "schedule.compile=true") == 2
    assert "schedule.compile: torch.compile needs a C++ compiler, found no no-such-compiler" in capsys.readouterr().err
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.fused=true", "schedule.optimizer=lion"], "schedule.fused: lion has no fused kernel"),
        (["schedule.fused=true", "schedule.optimizer=RMSprop"], "schedule.fused: RMSprop has no fused kernel"),
        (["+schedule.optimizer_args.fused=true"], "fused belongs to schedule.fused"),
        (["schedule.compile=fast"], "schedule.compile: "),
    ],
)
def test_refused(train, capsys, overrides, message):
    assert train(*FAST, "method=supervised", *overrides) == 2
    assert message in capsys.readouterr().err
