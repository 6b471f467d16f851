"""scripts/status.py, compare.py, evaluate.py, publish.py and the HTML report, on records that are written by hand."""

import base64
import hashlib
import json
import lzma
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kdrun.cli import publish as publishing
from kdrun.cli.compare import main as compare
from kdrun.cli.evaluate import main as evaluate
from kdrun.cli.status import main as status
from kdrun.cli.table import main as table_main
from kdrun.core.errors import ConfigError, KdrunError, Unfinished
from kdrun.core.schema import build
from kdrun.results import fill as tables
from kdrun.results.plan import PlannedCell, PlannedRun, TablePlan
from kdrun.results.spec import TableConfig
from kdrun.runs.record import read_record, write_record
from tests.conftest import ROOT


def record(key: str, seed: int, **changes) -> dict:
    return {
        "schema": 1, "status": "done", "key": key, "seed": seed, "dataset": "digits", "num_labels": 20, "method": "distill",
        "headline": "student", "metrics": {"test/student/top1": 0.5 + seed / 10}, "requires": {}, "device": "cpu",
        "seconds": {"total": 100.0 - seed}, "nets": {}, "best_on_val": None, "warnings": [],
        "config": {
            "method": {"name": "distill"}, "dataset": {"name": "digits"}, "students": [{"name": "resnet8"}],
            "loss": {"kd": {"name": "kd", "temperature": 4.0}}, "execution": {"outputs": "outputs"},
        },
        **changes,
    }  # fmt: skip


def write(outputs: Path, key: str, seed: int, **changes) -> Path:
    directory = outputs / "runs" / "distill" / "digits" / "n20" / f"s{seed}-{key}"
    write_record(directory, record(key, seed, **changes))
    return directory


def predictions(directory: Path, predicted: list[int], target: list[int], order: list[int]) -> None:
    (directory / "predictions").mkdir()
    logits = np.eye(3, dtype=np.float32)[predicted] * 5
    arrays = {"index": np.array(order), "target": np.array(target)[order], "logits": logits[order]}
    np.savez(directory / "predictions" / "test-student.npz", **arrays)


def test_status_filters_sorts_and_tells_why(tmp_path):
    write(tmp_path, "a", 0)
    warm = {**record("b", 1)["config"], "loss": {"kd": {"name": "kd", "temperature": 2.0}}}
    write(tmp_path, "b", 1, config=warm)
    failed = write(
        tmp_path, "c", 2, status="failed", metrics={}, error={"type": "NonFiniteLoss", "message": "loss.kd is NaN"}
    )
    (failed / "log.txt").write_text(
        "1\n2\n3 failed: loss.kd is NaN\nTraceback\n  File x\nkdrun.errors.NonFiniteLoss: loss.kd is NaN\n"
    )
    write(tmp_path, "d", 3, status="running", metrics={})
    (tmp_path / "runs/distill/digits/n20/s4-e").mkdir()
    (tmp_path / "runs/distill/digits/n20/s4-e/record.json").write_text('{"schema": 1,')
    text = status([f"outputs={tmp_path}"])
    last, left_out = text.splitlines()[-2:]
    assert last == f"4 runs in {tmp_path}: 2 done, 1 failed, 1 stopped"
    assert left_out.startswith(f"left out: {tmp_path}/runs/distill/digits/n20/s4-e/record.json: not a readable record")
    assert "    NonFiniteLoss: loss.kd is NaN\n    Traceback\n    File x\n" in text
    lines = status([f"outputs={tmp_path}", "sort=metric", "reverse=true", "status=done"]).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["distill/digits/n20/s1-b", "done", "60.00"], ["distill/digits/n20/s0-a", "done", "50.00"],
    ]  # fmt: skip
    for given, count in (("loss.kd.temperature=2", 1), ("loss.kd.temperature=4.0", 3), ("dataset.name=svhn", 0)):
        assert f"\n{count} runs in" in "\n" + status([f"outputs={tmp_path}", given])
    with pytest.raises(ConfigError, match=r"loss\.kd\.temprature: no run has this key; nearest: loss\.kd\.temperature"):
        status([f"outputs={tmp_path}", "loss.kd.temprature=2"])


def test_compare_aligns_images_and_names_those_that_flipped(tmp_path):
    a, b = write(tmp_path, "a", 0), write(tmp_path, "b", 1)
    target = [0, 0, 1, 1, 2]
    predictions(a, [0, 1, 1, 1, 0], target, [0, 1, 2, 3, 4])
    predictions(b, [0, 0, 2, 1, 1], target, [4, 2, 0, 3, 1])
    text = compare([f"run={a}", f"run={b}"])
    assert "seed" not in text.split("\n\n")[1], "the record's config of this test has none"
    assert "test/student/top1      50.00    60.00    +10.00" in text
    assert "5 test images: both right 2, only A 1, only B 1, neither 1; another prediction for 3; p = 1.000" in text
    assert "     0       2   50.00  100.00  +50.00" in text
    assert "only B is right: image (class: A -> B) 1 (0: 1 -> 0)" in text
    assert "only A is right: image (class: A -> B) 2 (1: 1 -> 2)" in text
    c = write(tmp_path, "c", 2)
    predictions(c, [0], [0], [0])
    with pytest.raises(KdrunError, match="are of other images"):
        compare([f"run={a}", f"run={c}"])


def test_stored_predictions_give_today_s_metrics_to_an_older_record(tmp_path):
    run = write(tmp_path, "a", 0)
    predictions(run, [0, 1, 1, 1, 0], [0, 0, 1, 1, 2], [0, 1, 2, 3, 4])
    before = (run / "record.json").read_text()
    text = evaluate([f"run={run}"])
    assert "test/student/top1 0.6000" in text
    assert (run / "record.json").read_text() == before
    found = json.loads((run / "evaluations" / "stored.json").read_text())
    assert found["key"] == "a"
    assert found["metrics"]["test/student/ece"] == pytest.approx(
        abs(0.6 - float(np.exp(5) / (np.exp(5) + 2))), abs=1e-6
    )
    with pytest.raises(ConfigError, match="stored predictions need no machine"):
        evaluate([f"run={run}", "execution.device=cpu"])
    with pytest.raises(ConfigError, match="amend: dataset=svhn"):
        evaluate([f"run={run}", "dataset=svhn", "amend=true"])
    with pytest.raises(KdrunError, match="kept no predictions"):
        evaluate([f"run={write(tmp_path, 'b', 1)}"])
    assert "metrics that it did not have" in evaluate([f"run={run}", "amend=true"])
    metrics = read_record(run)["metrics"]
    assert metrics["test/student/top1"] == 0.5, "what the record has stays"
    assert metrics["test/student/nll"] == found["metrics"]["test/student/nll"]


# ------------------------------------------------------------------------------------------- reports, publishing

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Path:
    """A table of two rows, one with a name that is markup, over two numbers of labels."""
    cells, outputs = [], tmp_path / "outputs"
    for i, row in enumerate(("KD", EVIL)):
        for column in ("20", "40"):
            keys = [f"{i}{column}{seed}" for seed in (0, 1)]
            for seed, key in enumerate(keys):
                run = write(outputs, key, seed, num_labels=int(column))
                (run / "metrics.jsonl").write_text(
                    '{"step": 5, "test/student/top1": 0.4}\n{"step": 9, "test/student/top1": 0.5}\n'
                )
            runs = [
                PlannedRun(seed=s, place=f"runs/distill/digits/n20/s{s}-{key}", net="resnet8", needs={})
                for s, key in enumerate(keys)
            ]
            cells.append(
                PlannedCell(
                    row=row,
                    column=column,
                    overrides=[],
                    given_teacher=False,
                    teacher_temperature=1,
                    teacher_as_trained=True,
                    deviations=[],
                    runs=runs,
                )
            )
    spec = {"seeds": [0, 1], "rows": {"KD": [], EVIL: []}, "columns": {"20": [], "40": []}}
    for module in (tables, publishing):
        monkeypatch.setattr(module, "table_spec", lambda name: build(TableConfig, spec, name))
        monkeypatch.setattr(module, "plan_of", lambda *_, **__: TablePlan(cells=cells))
    return outputs


def test_a_report_is_one_file_that_asks_for_nothing_and_escapes_everything(planned):
    [run] = planned.glob("runs/distill/digits/n20/s0-0200")
    predictions(run, [0, 1, 1], [0, 1, 2], [0, 1, 2])
    assert table_main(["table=t", f"outputs={planned}", "format=html"]) == f"wrote {planned}/reports/t.html"
    text = (planned / "reports" / "t.html").read_text()
    HTMLParser().feed(text)
    scripts = re.findall("<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert [kind for kind, _ in scripts] == [' type="application/json" id="pairs"', ""]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text, "no other script runs"
    assert json.loads(scripts[0][1])["rows"] == ["KD", EVIL]
    assert "alert" not in re.sub("&lt;script&gt;alert", "", text.replace(scripts[0][1], ""))
    assert not re.findall(r'(?:src|href)="(?!#|\.\./runs/)|url\((?!#)|@import', text)
    for section in (
        "Seeds",
        "By number of labels",
        "Learning curves",
        "Reliability",
        "Classes",
        "Cost",
        "Environment",
        "Runs",
    ):
        assert f">{section}</h2>" in text
    assert text.count("<svg") == 6  # seeds and curves of two columns, labels, one diagram
    assert text.count('<svg role="img" aria-label="') == 6
    assert "#000000" not in text, "what is black follows the page"
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:;" in text
    assert "<code>distill/digits/n20/s0-0200</code>" in text, "the run behind a cell"
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_publishing_and_its_check(planned, tmp_path):
    folder, readme = tmp_path / "published", tmp_path / "README.md"
    readme.write_text("before\n<!-- table t -->\nold\n<!-- /table t -->\nafter\n")
    asked = ["table=t", f"outputs={planned}", f"published={folder}", f"pages={readme}"]
    assert publishing.main(asked).startswith(f"wrote {folder}/t: 8 records")
    text = readme.read_text()
    assert text.startswith("before\n<!-- table t -->\n**t**\n")
    assert text.endswith("\n<!-- /table t -->\nafter\n")
    (folder / "t" / "table.md").write_text("Notes.\n" + (folder / "t" / "table.md").read_text() + "More.\n")
    publishing.main(asked)
    assert (folder / "t" / "table.md").read_text().startswith("Notes.\n<!-- tables -->\n**t**")
    for path in planned.rglob("record.json"):
        path.unlink()  # the published records are enough
    check = [f"outputs={planned}", f"published={folder}", f"pages={readme}", "check=true"]
    assert publishing.main(check) == "as their records make them: t"
    assert publishing.main([*asked, "again=true"]) == f"{folder}/t: nothing has changed"
    readme.write_text(text.replace("55.00", "56.00"))
    with pytest.raises(Unfinished, match=r"README\.md: table=t is not what .*records\.jsonl makes"):
        publishing.main(check)
    publishing.main([*asked, "again=true"])
    assert readme.read_text() == text
    (folder / "odd").mkdir()
    with pytest.raises(KdrunError, match=r"odd/published\.json: is not there; run kdrun publish table=odd"):
        publishing.main(check)
    (folder / "odd").rmdir()
    (folder / "t" / "records.jsonl").write_text('{"schema": 1}\n')
    with pytest.raises(KdrunError, match="line 1 is no whole record"):
        publishing.main(check)


def test_each_page_that_shows_a_table_is_written_and_checked(planned, tmp_path):
    (results := tmp_path / "results").mkdir()
    block = "<!-- table t -->\nold\n<!-- /table t -->\n"
    pages = [tmp_path / "README.md", results / "one.md", results / "more" / "two.md"]
    pages[2].parent.mkdir()
    for page in pages:
        page.write_text(f"{page.stem}\n{block}")
    (results / "other.md").write_text("no table here\n")
    asked = [f"published={tmp_path / 'p'}", f"pages={pages[0]}", f"pages={results}"]
    publishing.main(["table=t", f"outputs={planned}", *asked])
    (shown,) = {page.read_text().removeprefix(f"{page.stem}\n") for page in pages}
    assert shown.startswith("<!-- table t -->\n**t**\n")
    assert (results / "other.md").read_text() == "no table here\n"
    pages[2].write_text(block)
    with pytest.raises(Unfinished, match=r"results/more/two\.md: table=t is not what"):
        publishing.main([*asked, "check=true"])
    with pytest.raises(ConfigError, match="pages: nowhere: no such file or folder"):
        publishing.main([*asked, "pages=nowhere", "check=true"])


def test_many_records_are_published_packed(planned, tmp_path, monkeypatch):
    (readme := tmp_path / "README.md").write_text("no table here\n")
    place = tmp_path / "published" / "t"
    asked = ["table=t", f"outputs={planned}", f"published={place.parent}", f"pages={readme}"]
    publishing.main(asked)
    whole, size = (place / "records.jsonl").read_text(), (place / "records.jsonl").stat().st_size
    monkeypatch.setattr(publishing, "PLAINLY", size - 1)
    publishing.main(asked)
    assert [path.name for path in place.glob("records*")] == ["records.jsonl.xz"]
    packed = (place / "records.jsonl.xz").read_bytes()
    assert lzma.decompress(packed).decode() == whole
    assert publishing.main([*asked[2:], "check=true"]).startswith("as their records make them")
    publishing.main(asked)
    assert (place / "records.jsonl.xz").read_bytes() == packed
    (place / "records.jsonl.xz").write_bytes(packed[:-9])
    with pytest.raises(KdrunError, match=r"records\.jsonl\.xz: not readable"):
        publishing.main([*asked, "again=true"])
    monkeypatch.setattr(publishing, "PLAINLY", size)
    publishing.main(asked)
    assert [path.name for path in place.glob("records*")] == ["records.jsonl"]


@pytest.mark.parametrize("path", ["/data/resnet56.th", "~/weights.th", "~me/weights.th", "C:\\data", "--x=/data"])
def test_records_with_a_path_of_the_machine_are_refused(planned, tmp_path, path):
    [run] = planned.glob("runs/distill/digits/n20/s0-0200")
    write_record(run, record("0200", 0, overrides=[f"teacher.path={path}"]))
    with pytest.raises(KdrunError, match=r"holds a path of this machine, overrides\.0: teacher\.path="):
        publishing.main(["table=t", f"outputs={planned}", f"published={tmp_path / 'p'}"])
    assert not (tmp_path / "p").exists()
    write_record(run, record("0200", 0, overrides=["~loss.ce=null"]))  # a key that is taken away
    publishing.main(["table=t", f"outputs={planned}", f"published={tmp_path / 'p'}"])


@pytest.mark.parametrize("path", ["/scratch/me/outputs", "~/outputs", "C:\\outputs"])
def test_where_outputs_lay_is_no_part_of_what_is_published(planned, tmp_path, path):
    [run] = planned.glob("runs/distill/digits/n20/s0-0200")
    made = record("0200", 0, overrides=["loss=kd", f"execution.outputs={path}"])
    made["config"] = {**made["config"], "execution": {"threads": 1, "outputs": path}}
    write_record(run, made)
    publishing.main(["table=t", f"outputs={planned}", f"published={tmp_path / 'p'}"])
    told = publishing.published_reader(tmp_path / "p" / "t")("0200")
    assert told["config"]["execution"] == {"threads": 1, "outputs": "outputs"}
    assert told["overrides"] == ["loss=kd"]
    assert "scratch" not in (tmp_path / "p" / "t" / "records.jsonl").read_text()
    assert read_record(run)["config"]["execution"]["outputs"] == path, "the run itself keeps it"


def test_curves_are_published_with_the_points_that_are_shown(planned, tmp_path, monkeypatch):
    (readme := tmp_path / "README.md").write_text("no table here\n")
    folder = tmp_path / "published"
    asked = ["table=t", f"outputs={planned}", f"published={folder}", f"pages={readme}"]
    publishing.main([*asked, "metric=test/top1", "columns=params", "curve=test/top1:1"])
    text = (folder / "t" / "table.md").read_text()
    for path in planned.rglob("*"):
        if path.is_file():
            path.unlink()
    publishing.main([*asked, "again=true"])
    assert (folder / "t" / "table.md").read_text() == text
    assert "| KD, 20 | 50.00 ± 0.00 (n=2) |" in text
    assert "|  | 20 | 40 | 20: params | 40: params |" in text
    told = json.loads((folder / "t" / "published.json").read_text())
    assert told["curves"]["test/top1"]["0200"] == {"9": 0.5}, "of steps 5 and 9 the last is shown"
    assert told["shows"] == [{"metric": "test/top1", "columns": "params"}, {"metric": "test/top1", "curve": 1}]
    with pytest.raises(ConfigError, match="curve: test/top1: write <metric>:<points>"):
        publishing.main([*asked, "again=true", "curve=test/top1"])
    spec = build(TableConfig, {"seeds": [0, 1], "rows": {"KD": []}, "columns": {"20": []}}, "t")
    monkeypatch.setattr(publishing, "table_spec", lambda _: spec)
    with pytest.raises(Unfinished, match=r"conf/table/t\.yaml says something else by now"):
        publishing.main([*asked, "check=true"])


@pytest.mark.slow
def test_published_tables_and_the_pages_are_what_their_records_make(monkeypatch):
    monkeypatch.chdir(ROOT)
    told = publishing.main(["check=true"]).removeprefix("as their records make them: ").split(", ")
    tables = [path for path in (ROOT / "outputs" / "published").iterdir() if not (path / "bench.json").exists()]
    assert told == sorted(path.name for path in tables)
    assert publishing.main(["table=demo", "check=true", "compose=true"]) == "as their records make them: demo"
