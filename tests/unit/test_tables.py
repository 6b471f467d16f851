"""Tables from fixed records, against a text that was checked by hand; what is missing, failed, doubled or damaged."""

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest

from kdrun.cli.table import main
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.schema import build
from kdrun.results import fill as tables
from kdrun.results.claims import verdict_on
from kdrun.results.found import found_table
from kdrun.results.intervals import paired_interval, welch
from kdrun.results.papers import Claim, Paper, read_paper
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan
from kdrun.results.progress import Todo, _cost, commands_of
from kdrun.results.spec import TableConfig
from kdrun.results.table import two_rows
from kdrun.runs.record import write_record
from tests.published import of_paper
from tests.records import whole

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "table.txt"
AGGREGATES = GOLDEN.with_name("table_aggregates.txt")
ROWS = {"KD": ["loss=kd"], "a|b, c": ["loss=ttm"]}
SPEC = {"paper": "it", "seeds": [0, 1, 2], "rows": ROWS, "columns": {"r56": ["x=1"], "20%": ["x=2"]}}
CELL = {"table": "1", "protocol": "last", "tag": "paper"}
PAPER = {
    "source": "arXiv 0000.00000",
    "unit": "percent",
    "cells": [
        {**CELL, "row": "Teacher", "column": "r56", "mean": 80.0},
        {**CELL, "row": "KD", "column": "r56", "mean": 71.5, "std": 0.5, "n": 5},
        {**CELL, "row": "a|b, c", "column": "r56", "mean": 73.0},
        {**CELL, "row": "a|b, c", "column": "20%", "mean": None},
        {**CELL, "table": "2", "row": "KD", "column": "both", "mean": 61.0, "std": 0.5, "n": 3},
        {**CELL, "table": "2", "row": "Elsewhere", "column": "both", "mean": 66.0},
        {**CELL, "table": "2", "row": "Elsewhere", "column": "20%", "mean": 57.0, "std": 0.2},
    ],
    "claims": [
        {"name": "a|b, c > KD", "kind": "greater", "rows": ["a|b, c", "KD"], "tag": "paper"},
        {"name": "b > a", "kind": "greater", "rows": ["KD", "a|b, c"], "columns": ["both"], "tag": "paper"},
        {"name": "dear", "kind": "ratio", "rows": ["a|b, c", "KD"], "columns": ["r56"], "metric": "cost", "margin": 1.5, "tag": "paper"},
    ],
}  # fmt: skip


def record(key: str, seed: int, top1: float | None, **changes) -> dict:
    status = {"status": "failed", "error": {"message": "NaN"}} if top1 is None else {"status": "done"}
    metrics = {} if top1 is None else {"test/student/top1": top1, "test/teacher/top1": 0.8}
    return {
        "schema": 1, "key": key, "seed": seed, "dataset": "digits", "num_labels": 20, "method": "distill",
        "headline": "student", "metrics": metrics, "requires": {}, "device": "cpu", "precision": "fp32",
        "code": {"version": "0.1.0", "commit": "a" * 40, "dirty": False}, "seconds": {"total": 100.0, "train": 80.0},
        "steps": 40, "nets": {"student": {"model": "resnet8", "num_params": 5142, "flops": 386_688}},
        "config": {"method": {"name": "distill"}, "loss": {"kd": {"name": "kd"}}, "schedule": {"batch_size": 64}},
        **status, **changes,
    }  # fmt: skip


def planned(row: str, column: str) -> PlannedCell:
    teacher = PlannedRun(seed=0, place="runs/supervised/d/nall/s0-t", net="resnet56", needs={})
    runs = [
        PlannedRun(seed=s, place=f"runs/distill/{row[:1]}/{column}/s{s}", net="resnet8", needs={"teacher": teacher})
        for s in range(3)
    ]
    notes = ["they crop, we do not."] if column == "r56" else []
    overrides = [*SPEC["columns"][column], *ROWS[row]]
    return PlannedCell(
        row=row, column=column, overrides=overrides, given_teacher=False, teacher_temperature=1, teacher_as_trained=True,
        deviations=notes, ours=["schedule.steps = 40 (proposed)"] if row == "KD" else [], runs=runs,
    )  # fmt: skip


PLAN = TablePlan(cells=[planned(row, column) for row in ROWS for column in SPEC["columns"]])


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    """KD, r56: three seeds, one on another device; KD, 20%: one done, one failed, one damaged; a|b: two and one."""
    out = tmp_path / "outputs"
    places = {(c.row, c.column, r.seed): out / r.place for c in PLAN.cells for r in c.runs}
    for seed, top1 in enumerate((0.70, 0.71, 0.72)):
        device = "NVIDIA H200" if seed == 2 else "cpu"
        write_record(places["KD", "r56", seed], record(f"k{seed}", seed, top1, device=device))
    write_record(places["KD", "20%", 0], record("l0", 0, 0.5))
    write_record(places["KD", "20%", 1], record("l1", 1, None))
    places["KD", "20%", 2].mkdir(parents=True)
    (places["KD", "20%", 2] / "record.json").write_text('{"schema": 1, "status": "do')
    for seed, top1 in ((0, 0.72), (2, 0.75)):
        write_record(places["a|b, c", "r56", seed], record(f"m{seed}", seed, top1, seconds={"total": 200.0}))
    write_record(out / "runs/supervised/d/nall/s0-t", record("t", 0, 0.795))
    monkeypatch.setattr(tables, "table_spec", lambda name: build(TableConfig, SPEC, name))
    monkeypatch.setattr(tables, "plan_of", lambda *_, **__: PLAN)
    monkeypatch.setattr(tables, "read_paper", lambda _: build(Paper, PAPER, "paper"))
    return out


def test_the_text_that_was_checked_by_hand(outputs):
    text = main(["table=it", f"outputs={outputs}", "spread=minmax", "columns=params,seconds", "compare=a|b, c,KD"])
    assert text.replace(str(outputs), "<outputs>") + "\n" == GOLDEN.read_text()


def test_aggregates_are_means_seed_by_seed_and_say_what_they_lack(outputs, monkeypatch):
    """KD: r56 70, 71, 72 and, of ImageNet-V2, 20% 52, failed, damaged: 61 of seed 0. a|b: r56 72, -, 75 with 62, -, 61."""
    spec = {**SPEC, "aggregates": {"both": ["r56", "20%"]}, "shows": {"20%": "imagenet_v2/top1"}, "paper_tables": ["2"]}
    monkeypatch.setattr(tables, "table_spec", lambda name: build(TableConfig, spec, name))
    for cell in PLAN.cells:
        for run in cell.runs:
            path = outputs / run.place / "record.json"
            found = json.loads(path.read_text()) if path.exists() and run.seed < 2 else {"status": "damaged"}
            if found["status"] == "done" and cell.column == "20%":
                found["metrics"]["imagenet_v2/student/top1"] = 0.52
                write_record(path.parent, found)
    places = {(c.row, c.column, r.seed): outputs / r.place for c in PLAN.cells for r in c.runs}
    for seed, top1 in ((0, 0.62), (2, 0.61)):
        metrics = {"test/student/top1": 0.1, "imagenet_v2/student/top1": top1}
        write_record(places["a|b, c", "20%", seed], record(f"n{seed}", seed, 0.1, metrics=metrics, precision="bf16"))
    text = main(["table=it", f"outputs={outputs}", "columns=flops"])
    assert text.replace(str(outputs), "<outputs>") + "\n" == AGGREGATES.read_text()
    cells = json.loads(main(["table=it", f"outputs={outputs}", "format=json"]))["cells"]
    both = {cell["row"]: cell for cell in cells if cell["column"] == "both"}
    assert both["KD"]["runs"] == {"seed 0": pytest.approx(61.0)}
    assert both["a|b, c"]["runs"] == {"seed 0": pytest.approx(67.0), "seed 2": pytest.approx(68.0)}
    assert (both["Elsewhere"]["published_only"], both["Elsewhere"]["paper_mean"], both["Elsewhere"]["n"]) == (
        True,
        66,
        0,
    )
    for changes, message in (
        ({"aggregates": {"both": ["r56", "r57"]}}, "both: r57: no such column; nearest: r56"),
        ({"aggregates": {"r56": ["r56", "20%"]}}, "aggregates: r56: is a column already"),
        ({"aggregates": {"both": ["r56"]}}, "aggregates: both: name two columns or more"),
        ({"shows": {"30%": "val/top1"}}, "shows: 30%: no such row or column; nearest: 20%"),
        ({"shows": {"20%": "val/nll"}}, "shows: 20%: val/nll: write <images>/<figure> in the unit of test/top1"),
        ({"shows": {"KD": "top5"}}, "shows: KD: top5: write <images>/<figure> in the unit of test/top1"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(TableConfig, {**SPEC, **changes}, "table it")
    with pytest.raises(ConfigError, match="paper_tables: 3: no table of arXiv"):
        build(Paper, PAPER, "paper").only(["3"])


def test_runs_that_several_columns_show_are_made_and_counted_once(outputs):
    twice = TablePlan(cells=[*PLAN.cells, *(cell.replace(column="again") for cell in PLAN.cells)])
    todo = Todo.of(twice, outputs)
    assert commands_of(todo, Path("outputs"), []) == commands_of(Todo.of(PLAN, outputs), Path("outputs"), [])
    for run in PLAN.cells[2].runs:
        (outputs / run.place / "record.json").unlink(missing_ok=True)
    todo = Todo.of(PLAN, outputs)
    assert [todo.estimate(cell) for cell in PLAN.cells] == [
        (100, "cell"),
        (100, "cell"),
        (100, "column"),
        (100, "column"),
    ]
    assert "6 by the same column" in "\n".join(_cost(todo))


def test_a_terminal_gets_rules_and_wraps_and_nothing_is_lost(outputs, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "70")
    text = re.sub(r"\x1b\[[0-9;]*m", "", main(["table=it", f"outputs={outputs}"]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 70
    assert lines[1].startswith("┏")
    folded = [re.split("[│┃]", line) for line in lines[2:] if line[0] in "│┃"]
    columns = [" ".join(part[k].strip() for part in folded) for k in (1, 2, 3)]
    assert columns[0].split()[:3] == ["KD", "a|b,", "c"]
    assert "71.00 ± 1.00 (n=3) | paper 71.50 (-0.50) 73.50 ± 2.12 (n=2/3)" in columns[1]
    assert "missing (0/3)" in columns[2]
    assert main(["table=it", f"outputs={outputs}", f"out={outputs / 'it.txt'}"]).startswith("wrote")
    assert "┏" not in (outputs / "it.txt").read_text()


def test_formats_hold_the_same_and_escape(outputs):
    asked = ["table=it", f"outputs={outputs}"]
    latex = main([*asked, "format=latex"])
    assert r"a$|$b, c & 73.50 $\pm$ 2.12 (n=2/3) $|$ paper 73.00 (+0.50) & missing (0/3) \\" in latex
    assert r" & r56 & 20\% \\" in latex
    assert all(line.startswith("%") for line in latex.splitlines() if "deviates" in line)
    assert r"| a\|b, c | 73.50 ± 2.12 (n=2/3) \| paper 73.00 (+0.50) | missing (0/3) |" in main(
        [*asked, "format=markdown"]
    )
    whole = json.loads(main([*asked, "format=json"]))
    lines = list(csv.DictReader(io.StringIO(main([*asked, "format=csv"]))))
    for cell, line in zip(whole["cells"], lines, strict=True):
        assert (line["row"], line["column"], line["n"]) == (cell["row"], cell["column"], str(cell["n"]))
    first = whole["cells"][0]
    assert (first["n"], first["planned"], first["min"], first["verdict"]) == (3, 3, pytest.approx(70), "within")
    assert first["runs"] == pytest.approx({"k0": 70.0, "k1": 71.0, "k2": 72.0})
    assert whole["cells"][1] | {"mean": 50.0, "std": None, "failed": [1], "missing": [2]} == whole["cells"][1]
    with pytest.raises(ConfigError, match=r"out: .*/x: no such folder"):
        main([*asked, f"out={outputs / 'x' / 'table.csv'}"])
    out = outputs / "table.csv"
    assert main([*asked, "format=csv", f"out={out}"]) == f"wrote {out}"
    assert len(out.read_text().splitlines()) == 6


def test_protocols(outputs):
    place = outputs / PLAN.cells[0].runs[0].place
    lines = [{"step": k, "test/student/top1": k / 100} for k in range(1, 31)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 31, "te')
    text = main(["table=it", f"outputs={outputs}", "protocol=median20"])
    assert "20.50 (n=1/3) | paper 71.50 (-51.00)" in text  # the median of 11, 12, ..., 30
    assert "without it: KD, r56: seed 1, 2: run k1 has no test/student/top1 (median20)" in text
    with pytest.raises(KdrunError, match=r"has no test/student/top1 \(best_on_val\)"):
        main(["table=it", f"outputs={outputs}", "protocol=best_on_val"])
    with pytest.raises(KdrunError, match="has no test/student/top2"):
        main(["table=it", f"outputs={outputs}", "metric=test/top2"])


def test_what_is_not_done_and_its_commands(outputs):
    todo = Todo.of(PLAN, outputs)
    assert [todo.states[run.place].state for run in PLAN.cells[1].runs] == ["done", "failed", "damaged"]
    assert todo.wanted() == []  # the teacher is there
    assert todo.estimate(PLAN.cells[3]) == (200, "row")  # as the row's other column took
    assert commands_of(todo, Path("outputs"), []) == [
        "python -m kdrun.train -m x=2 loss=kd seed=1,2",
        "python -m kdrun.train x=1 loss=ttm seed=1",
        "python -m kdrun.train -m x=2 loss=ttm seed=0,1,2",
    ]
    once = PLAN.cells[3].replace(runs=[PLAN.cells[3].runs[0]] * 3)  # whatever the seed, a teacher is one run
    assert commands_of(Todo.of(PLAN.replace(cells=[once]), outputs), Path("outputs"), []) == [
        "python -m kdrun.train x=2 loss=ttm seed=0"
    ]
    (outputs / "runs/supervised/d/nall/s0-t/record.json").unlink()
    todo = Todo.of(PLAN, outputs)
    assert [run.net for run in todo.wanted()] == ["resnet56"]
    assert todo.estimate_needed("runs/supervised/d/nall/s0-t") is None


def test_a_running_record_of_a_dead_process_is_stopped(outputs):
    place = outputs / PLAN.cells[3].runs[0].place
    write_record(place, whole("r", status="running"))
    assert Todo.of(PLAN, outputs).states[PLAN.cells[3].runs[0].place].state == "stopped"


def test_found_tables_count_a_key_once_and_name_what_is_odd(tmp_path):
    runs = tmp_path / "runs" / "distill" / "digits" / "n20"
    write_record(runs / "s0-a", record("a", 0, None))
    write_record(runs / "s0-b", record("a", 0, 0.5))
    write_record(runs / "s1-c", record("c", 1, 0.7))
    write_record(runs / "s2-d", {"schema": 1, "status": "done", "key": "d"})
    write_record(runs / "s2-e", {"schema": 0, "status": "done", "key": "e"})
    (runs / "s3-f").mkdir()
    (runs / "s3-f" / "record.json").write_text("[]")
    text = found_table(tmp_path).to_text()
    assert "60.00 ± 14.14 (n=2)" in text
    assert (
        "two records of one key: distill/digits/n20/s0-b (done) counts, distill/digits/n20/s0-a (failed) does" in text
    )
    for name, why in (
        ("s2-d", "not a whole record (seed: missing; a value is required; and 8 more); delete it to run this anew"),
        ("s2-e", "record schema 0; this kdrun reads schema 1"),
        ("s3-f", "record schema None"),
    ):
        assert f"\nleft out: {runs / name / 'record.json'}: {why}" in text


def test_arguments_that_do_not_go_together(outputs):
    for arguments, message in (
        (["columns=parms", "table=it"], "columns: parms: no such column; nearest: params"),
        (["table=it", "override=a=1"], "override: goes with dry=true or execute=true"),
        (["table=it", "where=seed=0"], "where: goes without a table"),
        (["table=it", "compare=KD"], "compare: KD: write two rows, rowA,rowB"),
        (["table=it", "protocol=median"], "'median' is not allowed"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([*arguments, f"outputs={outputs}"])
    assert two_rows("A, b,C", ["A, b", "C"]) == ("A, b", "C")


def test_intervals_by_hand():
    """Welch: variances .01/4 and .04/4; df = .0125^2 / (.0025^2/3 + .01^2/3); t(.975, 4.4118) = 2.6763."""
    found = welch(1.0, 0.1, 4, 0.8, 0.2, 4)
    assert found.df == pytest.approx(4.411765)
    assert (found.low, found.high) == pytest.approx(
        (0.2 - 2.6763 * math.sqrt(0.0125), 0.2 + 2.6763 * math.sqrt(0.0125)), abs=2e-3
    )
    assert welch(1, 0.1, 1, 0.8, 0.2, 4) is None
    pairs = paired_interval([1.0, 2.0, 3.0])  # t(.975, 2) = 4.302653, error 1/sqrt 3
    assert (pairs.difference, pairs.high) == pytest.approx((2, 2 + 4.302653 / math.sqrt(3)))
    assert pairs.p == pytest.approx(0.074180, abs=1e-5)
    same = paired_interval([0.5, 0.5])
    assert (same.low, same.high, same.p) == (0.5, 0.5, 0)
    assert paired_interval([1.0]) is None


def test_the_papers_own_numbers_bear_their_claims_out():
    """But for one of the digest's, as conf/paper/dual_student.yaml says."""
    verdicts = {}
    for name in ("ttm", "kd_fixmatch", "dual_student", "mixup_kd"):
        paper = read_paper(name)
        for claim in paper.claims:
            columns = {
                c.column for c in paper.cells if c.row == claim.rows[0] and not c.table.startswith(("imagenet", "logs"))
            }
            verdicts[claim.name] = verdict_on(claim, sorted(columns), of_paper(paper)).verdict
    assert [name for name, v in verdicts.items() if v == "fails"] == ["weighting by uncertainty adds 0.9 to 1.0 to KD"]
    assert sum(v == "holds" for v in verdicts.values()) == 11
    with pytest.raises(ConfigError, match="kind=greater is about 2 rows, got 1"):
        build(Claim, {"name": "x", "kind": "greater", "rows": ["a"], "tag": "paper"}, "claim")
