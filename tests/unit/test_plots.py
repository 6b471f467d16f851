"""scripts/plot.py and scripts/analyze.py propagation, on records that are written by hand."""

import json
import math
import runpy
import statistics
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdrun.cli.analyze import main as analyze
from kdrun.cli.plot import main
from kdrun.config.key import run_directory
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.results.analysis.propagation import fit
from kdrun.results.plan import configs_of
from kdrun.results.plots.curves import band
from kdrun.results.plots.figure import legend_columns, legend_height
from kdrun.results.plots.judged import RunOptions, judged
from kdrun.results.spec import table_spec
from kdrun.runs.finished import FinishedRun
from tests.conftest import ROOT
from tests.records import whole


def write_run(directory: Path, metrics: dict, **keys) -> Path:
    directory.mkdir(parents=True)
    record = whole(directory.name, metrics=metrics, best_on_val=None, **keys)
    (directory / "record.json").write_text(json.dumps(record))
    return directory


TEACHER_GAPS = {"KD": -0.1, "TTM": 0.0, "WTTM": 0.3}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """conf/table/demo.yaml: CE without a teacher; gap of a student = 0.02 + 0.5 x its teacher's + 0.01 (seed - 1)."""
    outputs = tmp_path_factory.mktemp("demo") / "outputs"
    for row, _, runs in configs_of("demo", table_spec("demo"), outputs):
        for config in runs:
            noise = 0.01 * (config.seed - 1)
            metrics = {"test/student/top1": 0.9 + noise, "test/student/confidence": 0.92, "test/student/ece": 0.05}
            if row in TEACHER_GAPS:
                gap = TEACHER_GAPS[row]
                metrics |= {
                    "test/teacher/confidence_gap": gap,
                    "test/teacher/top1": 0.9,
                    "test/teacher/confidence": 0.9 + gap,
                }
                metrics["test/student/confidence_gap"] = 0.02 + 0.5 * gap + noise
            directory = write_run(
                run_directory(config), metrics, status="failed" if (row, config.seed) == ("TTM", 2) else "done"
            )
            lines = [{"step": step, "test/student/top1": step / 300 + noise} for step in (100, 200, 300)]
            (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return outputs


@pytest.fixture
def run(tmp_path) -> Path:
    """The golden example of ECE: 0.371667; and a teacher that is always right and always sure."""
    directory = write_run(tmp_path / "runs/m/d/nall/s0-0", {})
    confidence, correct = [0.95, 0.9, 0.85, 0.62, 0.55, 0.3], [1, 1, 0, 1, 0, 0]
    p = np.repeat((1 - np.array(confidence))[:, None] / 9, 10, 1)
    p[:, 0] = confidence
    save(directory, "student", np.log(p), [0 if right else 1 for right in correct])
    save(directory, "teacher", np.eye(10)[:6] * 50, list(range(6)))
    return directory


def save(directory: Path, net: str, logits, target) -> None:
    (directory / "predictions").mkdir(exist_ok=True)
    arrays = {
        "logits": np.asarray(logits, dtype=np.float32),
        "target": np.asarray(target),
        "index": np.arange(len(target)),
    }
    np.savez(directory / "predictions" / f"test-{net}.npz", **arrays)


def width(png: Path) -> int:
    return struct.unpack(">I", png.read_bytes()[16:20])[0]


# ------------------------------------------------------------------------------------------------- propagation


def test_a_line_by_hand():
    line = fit([(0, 1), (1, 2), (2, 4), (3, 5)])
    assert (line.n, line.slope, line.intercept) == pytest.approx((4, 1.4, 0.9))
    # residuals .1, -.3, .3, -.1: s^2 = .2 / 2, error = sqrt(.1 / 5); t(.975, 2) = 4.302653
    assert line.error == pytest.approx(math.sqrt(0.02))
    assert (line.low, line.high) == pytest.approx((1.4 - 4.302653 * math.sqrt(0.02), 1.4 + 4.302653 * math.sqrt(0.02)))
    assert line.correlation == pytest.approx(7 / math.sqrt(5 * 10))


def test_lines_that_say_little():
    two = fit([(0, 1), (1, 3)])
    assert (two.slope, two.correlation) == pytest.approx((2, 1))
    assert math.isnan(two.error)
    assert math.isnan(two.low)
    flat = fit([(0, 1), (1, 1), (2, 1)])
    assert flat.slope == 0
    assert math.isnan(flat.correlation)
    for points in ([(1, 2), (1, 3)], [(1, 2)], []):
        with pytest.raises(KdrunError, match=f"all {len(points)} runs have the same teacher's value"):
            fit(points)


@pytest.mark.slow
def test_propagation_over_runs_and_over_teachers(demo):
    text = analyze(["propagation", "table=demo", f"outputs={demo}"])
    assert "1 runs missing\n3 runs without test/teacher/confidence_gap\n" in text
    over_runs, over_teachers = (line for line in text.splitlines() if "over " in line)
    x = [gap for gap, seeds in zip((-0.1, 0.0, 0.3), (3, 2, 3), strict=True) for _ in range(seeds)]
    noise = [-0.01, 0, 0.01, -0.01, 0, -0.01, 0, 0.01]
    slope = statistics.linear_regression(x, [0.02 + 0.5 * gap + e for gap, e in zip(x, noise, strict=True)]).slope
    assert f"slope {slope:.3f} ± " in over_runs
    assert over_runs.endswith("n = 8")
    assert over_teachers.endswith("n = 3")
    row = next(line for line in text.splitlines() if line.split()[:1] == ["TTM"])
    assert row.split() == ["TTM", "0.9000", "+0.0000", "+0.0150", "2"]
    assert width(demo / "figures/propagation-demo.png") == 1050
    assert (demo / "figures/propagation-demo.svg").is_file()


def test_a_table_without_runs_is_said(tmp_path):
    with pytest.raises(KdrunError, match="table=demo: none of its 12 runs is done in"):
        main(["tradeoff", "table=demo", f"outputs={tmp_path}"])


def test_propagation_without_runs_is_said(tmp_path):
    with pytest.raises(KdrunError, match="table=demo: nothing to fit: 12 runs are missing in"):
        analyze(["propagation", "table=demo", f"outputs={tmp_path}"])


# ---------------------------------------------------------------------------------------------------- pictures


def test_pictures_of_tables(demo, tmp_path):
    for kind in ("confidence", "tradeoff"):
        text = main([kind, "table=demo", f"outputs={demo}"])
        paths = [demo / "figures" / f"{kind}-demo.{suffix}" for suffix in ("png", "svg")]
        assert text == "\n".join(f"wrote {path}" for path in paths)
        assert width(paths[0]) == 1050
    with pytest.raises(ConfigError, match="no such folder"):
        main(["curves", "table=demo", f"outputs={demo}", f"out={tmp_path}/new/curves.svg"])
    out = tmp_path / "curves.svg"
    assert main(["curves", "table=demo", f"outputs={demo}", "band=std", f"out={out}"]) == f"wrote {out}"
    svg = out.read_text()
    assert "<!-- TTM (n=3) -->" in svg
    assert "<!-- test/top1, % -->" in svg
    main(["curves", "table=demo", f"outputs={demo}", "band=std", f"out={out}"])
    assert out.read_text() == svg
    assert "dc:date" not in svg


def test_bands_over_seeds():
    curves = [{1: 0.0, 2: 1.0}, {1: 2.0, 2: 4.0}, {1: 9.0}]  # the third has not come as far yet
    one = band(curves, "range")
    assert (one.steps, one.middle, one.low, one.high, one.n) == ([1, 2], [1, 2.5], [0, 1], [2, 4], 2)
    assert band(curves, "std").high == pytest.approx([1 + math.sqrt(2), 2.5 + math.sqrt(4.5)])
    assert band(curves[:1], "std").low == [0, 1]


def test_a_legend_has_as_many_columns_as_fit():
    assert legend_columns(["a" * 12] * 9) == 4
    assert legend_columns(["a" * 12] * 2) == 2
    assert legend_columns(["a" * 200] * 3) == legend_columns([]) == 1
    assert legend_height(["a" * 12] * 9) == pytest.approx(0.1 + 3 * 0.19)


def test_pictures_of_a_run(run):
    for kind in ("reliability", "coverage"):
        main([kind, f"run={run}"])
        stem = run / "analysis" / f"{kind}-test"
        assert width(stem.with_suffix(".png")) == 1050
        svg = stem.with_suffix(".svg").read_bytes()
        main([kind, f"run={run}"])
        assert stem.with_suffix(".svg").read_bytes() == svg
    assert (
        b"<!-- ECE 37.17%, accuracy 50.0%, confidence 69.5% -->" in (run / "analysis/reliability-test.svg").read_bytes()
    )
    assert b"AURC 0.00%, E-AURC 0.00%, error 0.00%" in svg


def test_what_they_are_made_of(run):
    networks = judged(FinishedRun.open(run), RunOptions(run=str(run)))
    assert list(networks) == ["student", "teacher"]
    confidence, correct = networks["student"]
    torch.testing.assert_close(confidence, torch.tensor([0.95, 0.9, 0.85, 0.62, 0.55, 0.3]).double(), atol=1e-6, rtol=0)
    assert correct.tolist() == [1, 1, 0, 1, 0, 0]


def test_one_image_of_a_run_without_a_teacher(tmp_path):
    directory = write_run(tmp_path / "runs/m/d/nall/s0-1", {})
    save(directory, "student", [[0.0, 1.0]], [1])
    main(["reliability", f"run={directory}"])
    main(["coverage", f"run={directory}", f"out={tmp_path}/c.svg"])
    assert "error 0.00%" in (tmp_path / "c.svg").read_text()


def test_predictions_that_are_no_numbers_are_refused(run):
    save(run, "student", np.full((6, 10), np.nan), [0] * 6)
    with pytest.raises(KdrunError, match=r"predictions test-student hold logits that are not numbers \(NaN\)"):
        main(["reliability", f"run={run}"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "command line: not a picture (allowed: confidence, confusion, coverage, curves, reliability, tradeoff"),
        (["reliabilty", "run=x"], "reliabilty: not a picture; nearest: reliability"),
        (["reliability"], "run: missing; a value is required"),
        (["reliability", "run=/nowhere"], "/nowhere: not a run directory (no record.json)"),
        (["coverage", "run={run}", "net=other"], "no predictions test-other; it has test-student, test-teacher"),
        (["coverage", "run={run}", "split=val"], "no predictions val-student"),
        (["coverage", "run={run}", "out=x.pdf"], "out: x.pdf: write a name that ends in .png or .svg"),
        (["curves"], "give table=<name>, or run=<directory> once or more"),
        (["curves", "run={run}"], "has not logged test/top1"),
        (["tradeoff", "table=demi"], "table=demi: no such table; nearest: demo"),
        (["tradeoff", "table=demo", "colour=red"], "colour: unknown key"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, line, run, monkeypatch, capsys):
    arguments = [argument.replace("{run}", str(run)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["plot.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / "plot.py"), run_name="__main__")
    assert stopped.value.code == 2
    [told] = capsys.readouterr().err.splitlines()
    assert line in told
    with pytest.raises((ConfigError, KdrunError)):
        main(arguments)
