"""Reports of any runs: what is marked, that they say all without their script, links, filters, own and published tables."""

import json
import re
from html import unescape
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from kdrun.cli.table import TableOptions, main
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.schema import from_arguments
from kdrun.metrics import confusion_matrix
from kdrun.results.cell import Cell
from kdrun.results.differences import best_in, between
from kdrun.results.filters import Filters
from kdrun.results.plots import curves, reliability
from kdrun.results.report.behind import _hours, _telling
from kdrun.results.report.page import marked, signed, svg
from kdrun.results.table import Table
from kdrun.runs.record import open_record, write_record
from scripts import gallery
from tests.conftest import ROOT
from tests.records import whole

DEMO = ROOT / "outputs" / "published" / "demo"
ODD = 'a <b>&"bold"</b>'


def cell(*values: float) -> Cell:
    keys = {f"k{seed}": value for seed, value in enumerate(values)}
    return Cell(values=keys, seeds={key: seed for seed, key in enumerate(keys)})


def table(metric: str, **rows: Cell) -> Table:
    return Table("t", metric, list(rows), ["c"], {(row, "c"): one for row, one in rows.items()})


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """Two losses on three seeds, the second better; one run failed; classes with names, and what the runs predicted."""
    out = tmp_path_factory.mktemp("found") / "outputs"
    for (k, loss), seed in product(enumerate(("kd", ODD)), (0, 1, 2)):
        config = {
            "method": {"name": "distill"}, "seed": seed, "students": [{"name": "resnet8"}],
            "dataset": {"name": "digits"}, "loss": {"it": {"name": "it", "note": loss}},
        }  # fmt: skip
        failed = {"status": "failed", "error": {"type": "E", "message": "`loss` is NaN"}} if (k, seed) == (0, 2) else {}
        record = whole(
            f"{k}{seed}", seed, config=config, metrics={"test/student/top1": 0.5 + 0.2 * k + seed / 100}, device="cpu",
            seconds={"total": 90.0}, **failed,
        )  # fmt: skip
        run = out / f"runs/distill/digits/n20/s{seed}-{k}{seed}"
        write_record(run, record)
        (run / "predictions").mkdir()
        arrays = {"index": np.arange(4), "target": np.array([0, 0, 1, 2])}
        np.savez(run / "predictions/test-student.npz", logits=np.eye(3, dtype=np.float32)[[0, 1, 1, k]], **arrays)
    return out


@pytest.fixture(scope="module")
def page(outputs) -> str:
    assert main([f"outputs={outputs}", "format=html"]) == f"wrote {outputs}/reports/runs.html"
    return (outputs / "reports" / "runs.html").read_text()


def shown(page: str) -> str:
    """What one reads without scripts."""
    text = unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))
    return " ".join(text.replace("\N{MINUS SIGN}", "-").split())


def test_the_best_of_a_column_is_marked_and_what_chance_alone_parts_from_it():
    rows = {"a": cell(0.90, 0.91, 0.92), "b": cell(0.902, 0.909, 0.916), "c": cell(0.5, 0.51, 0.52), "d": cell(0.7)}
    assert best_in(table("test/top1", **rows)) == {("a", "c"): True, ("b", "c"): False}
    assert best_in(table("test/nll", **rows)) == {("c", "c"): True}, "less is better"
    assert best_in(table("test/confidence", **rows)) == {}, "neither more nor less is"
    assert best_in(table("test/top1", a=cell(0.9), b=cell(0.89), c=cell(0.9))) == {("a", "c"): True, ("c", "c"): True}
    assert best_in(table("test/top1", a=cell(0.9, 0.8))) == {}, "there is nothing to be better than"


def test_a_difference_is_paired_by_seed_where_two_seeds_are_shared():
    a, b = cell(0.5, 0.6, 0.7), cell(0.4, 0.5, 0.6)
    assert between(a, b, True).low == pytest.approx(10), "each seed differs by the same"
    b.seeds = {key: seed + 2 for key, seed in b.seeds.items()}  # one is shared
    assert between(a, b, True).low < 0, "independent runs of this spread may be equal"
    assert between(a, cell(0.4), True) is None


def test_a_report_of_found_runs_says_all_without_its_script(page, outputs):
    text = shown(page)
    for value in (
        "50.50",
        "0.71",
        "71.00",
        "1.00",
        "5 of 6 planned values",
        "failed: seed 2",
        "loss.it.note",
        "note=kd",
    ):
        assert value in text
    for row, seed, value in (("0", 0, "50.00"), ("0", 1, "51.00"), ("1", 0, "70.00"), ("1", 2, "72.00")):
        assert re.search(rf"{value}\s+distill/digits/n20/s{seed}-{row}{seed}", text)
    assert "-20.00 (-20.00 to -20.00)" in text, "the second row minus the first, over the two seeds of both"
    assert "kdrun table outputs=" in text
    assert "`" not in text, "what stands between backticks is code"
    assert ODD in text
    assert ODD not in page


def test_every_link_of_a_report_leads_somewhere(page, outputs, tmp_path):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    links = re.findall(r' href="([^"]+)"', page)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    folders = [outputs / "reports" / link for link in links if not link.startswith("#")]
    assert len(folders) == 6
    assert all((folder / "record.json").is_file() for folder in folders)
    main([f"outputs={outputs}", "format=html", f"out={tmp_path}/moved.html"])
    assert not re.findall(r' href="(?!#)', (tmp_path / "moved.html").read_text()), "beside no runs it links to none"


def test_columns_are_sorted_by_what_they_mean(page):
    first = re.search(r'<table class="main sortable">.*?</table>', page, re.DOTALL)[0]
    assert re.findall(r'data-v="([^"]+)"', first) == ["0.71", "0.505"]
    assert 'data-first="descending"' in first, "of accuracies one wants the greatest first"


def test_classes_of_a_cell_are_those_of_its_kept_predictions(page):
    assert confusion_matrix(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 2]), 3).tolist() == [
        [1, 1, 0], [0, 1, 0], [1, 0, 0],
    ]  # fmt: skip
    other, one = re.findall(r"<details>.*?</details>", page, re.DOTALL)
    assert "50.00 % right, seeds 0, 1<" in one
    assert "seeds 0, 1, 2<" in other
    matrix = re.search(r'<table class="matrix">.*?</table>', one, re.DOTALL)[0]
    assert re.findall(r"<td[^>]*>(\d*)</td>", matrix) == ["50", "50", "", "", "100", "", "100", "", ""]


def test_a_hundred_classes_are_a_small_picture(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("many", 100), ("most", 1000)):
        run = tmp_path / f"runs/distill/{name}/n20/s0-0{count}"
        write_record(run, whole(f"0{count}", dataset=name, metrics={"test/student/top1": 0.5}))
        (run / "predictions").mkdir()
        target = np.arange(2000) % count
        logits = rng.normal(size=(2000, count)).astype(np.float32) + 4 * np.eye(count, dtype=np.float32)[target]
        np.savez(run / "predictions/test-student.npz", logits=logits, target=target, index=np.arange(2000))
    main([f"outputs={tmp_path}", "format=html", f"out={tmp_path}/x.html"])
    many, most = re.findall(r"<details>.*?</details>", (tmp_path / "x.html").read_text(), re.DOTALL)
    assert many.count("data:image/png;base64,") == 1
    assert "1,000 x 1,000 pixels" in most
    assert "The 60 worst and the 10 best of 1000 classes" in most
    assert max(len(many), len(most)) < 60_000


def test_filters_choose_runs_and_refuse_what_no_run_has(outputs):
    text = main([f"outputs={outputs}", "where=[loss.it.note=kd,seed=1]"])
    assert "51.00 (n=1)" in text
    assert ODD not in text
    assert Filters.where(["[a=[1,2],b='x,y']", "c=3"]).wanted.keys() == {"a", "b", "c"}
    for words, error in (
        ("where=[loss.it.nome=kd]", r"where: loss\.it\.nome: no run has this key; nearest: loss\.it\.note"),
        ("where=[seed]", "where: seed: write <key>=<value>"),
        ("where=[seed=1,seed=2]", "where: seed: given twice, 1 and 2"),
        ("where=seed=7", "no run there with seed=7"),
    ):
        with pytest.raises(KdrunError, match=error) as raised:
            main([f"outputs={outputs}", words])
        assert "\n" not in str(raised.value)


def test_a_group_is_asked_for_by_what_it_chose_and_several_values_as_a_list(outputs):
    plain = {"method": {"name": "distill"}, "students": [{"name": "resnet8"}], "teacher": {"source": "none"}}
    kd = {**plain, "loss": {"ce": {"name": "ce"}, "kd": {"name": "kd", "temperature": 4}}}
    kd["teacher"] = {"source": "train", "model": {"name": "resnet20"}}
    configs = {"ce": {**plain, "loss": {"ce": {"name": "ce"}}}, "kd": kd}

    def taken(*words: str) -> list[str]:
        filters = Filters.where(words)
        runs = [(name, seed, {**config, "seed": seed}) for name, config in configs.items() for seed in (0, 1, 2)]
        return [f"{name}{seed}" for name, seed, config in runs if filters.take(whole(seed=seed, config=config))]

    assert taken("loss=ce", "seed=[0,2]") == ["ce0", "ce2"], "cross entropy alone"
    assert taken("[loss=[kd,at],seed=1]") == ["kd1"]
    assert taken("teacher=resnet20") == taken("loss.kd.temperature=4") == taken("loss=kd")
    assert taken("teacher=none", "student=resnet8", "method=distill") == ["ce0", "ce1", "ce2"]
    for words, error in (
        (["loss=kdd"], "no run there with loss=kdd; loss: none is kdd (allowed: it)"),
        (["loss.it=kd"], "where: loss.it: stands for several keys; ask for one"),
        (["seed=0,1"], "where: 1: write <key>=<value>, such as loss=kd; several values as seed=[0,1]"),
    ):
        with pytest.raises(KdrunError, match=re.escape(error)):
            main([f"outputs={outputs}", f"where=[{','.join(words)}]"])


def test_rows_of_found_runs_are_named_by_what_differs_and_stand_in_that_order(tmp_path):
    for k, rate in enumerate((10, 2, 0.5)):
        config = {"method": {"name": "distill"}, "dataset": {"name": "digits"}, "schedule": {"lr": rate, "steps": 9}}
        status = {"status": "failed", "error": {"message": "no `path`\nmore"}} if k == 2 else {}
        status = {"status": "running"} if k == 1 else status
        record = whole(f"0{k}", config=config, metrics={"test/student/top1": 0.5}, **status)
        write_record(tmp_path / f"runs/distill/digits/n20/s0-0{k}", record)
    text = main([f"outputs={tmp_path}"])
    rows = re.findall(r"^(lr=\S+)  (.*)$", text, re.MULTILINE)
    assert rows == [("lr=0.5", "failed (0/1)"), ("lr=2", "  stopped (0/1)"), ("lr=10", " 50.00 (n=1)")]
    assert "failed: lr=0.5, digits, 20 labels: seed 0: no `path`\n" in f"{text}\n"
    alone = main([f"outputs={tmp_path}", "where=[schedule.lr=10]"])
    assert "\ndistill  50.00 (n=1)" in alone


def test_found_rows_are_compared_have_further_columns_and_curves(outputs):
    rows = [line["row"] for line in json.loads(main([f"outputs={outputs}", "format=json"]))["cells"]]
    text = main([f"outputs={outputs}", f"compare={rows[1]},{rows[0]}", "columns=seconds"])
    assert f"{rows[1]} minus {rows[0]}, the same seeds" in text
    assert "90.0" in text
    with pytest.raises(KdrunError, match="no run there has logged train/loss"):
        main([f"outputs={outputs}", "metric=train/loss", "curve=3"])


def test_a_run_is_found_by_its_key_and_as_folders_and_lists_call_it(tmp_path):
    run = tmp_path / "runs/distill/digits/n20/s0-0123456789ab"
    write_record(run, whole())
    for name in ("0123456789ab", "s0-0123456789ab", "distill/digits/n20/s0-0123456789ab", str(run)):
        assert open_record(name, tmp_path)[0] == run.resolve()
    with pytest.raises(KdrunError, match="run: no run with the key 0123456789ff below"):
        open_record("s0-0123456789ff", tmp_path)
    with pytest.raises(KdrunError, match="s0-nothing: not a run directory"):
        open_record("s0-nothing", tmp_path)


def test_overrides_may_be_a_list():
    asked = ["table=demo", "dry=true", "override=[engine.slots=2,tracker=none]", "override=+a={b:1,c:2}"]
    assert from_arguments(TableOptions, asked).override == ["engine.slots=2", "tracker=none", "+a={b:1,c:2}"]


def test_keys_of_a_teacher_that_follow_from_having_it_or_from_the_student_are_left_out():
    ce = {"loss": "ce", "lr": 1, "teacher.source": "none", "teacher.temperature": 1}
    kd = {
        "loss": "kd",
        "lr": 2,
        "teacher.source": "train",
        "teacher.temperature": 1,
        "teacher.lr": 2,
        "teacher.steps": 9,
    }
    assert _telling([ce, kd]) == ["loss", "lr", "teacher.source"]
    assert _telling([ce, kd, kd | {"teacher.steps": 8}])[-1] == "teacher.steps"


def test_two_rows_stand_side_by_side_with_their_reliability_on_the_same_axes(page):
    places = re.findall(r'<div data-row="([^"]*)" data-column="([^"]*)"><figure class="narrow">', page)
    told = json.loads(re.search(r'id="pairs">(.*?)</script>', page, re.DOTALL)[1])
    assert [tuple(map(unescape, place)) for place in places] == [(row, told["columns"][0]) for row in told["rows"]]
    assert 'id="beside"' in page


def test_a_table_of_ones_own_is_found_with_all_that_it_names(tmp_path):
    conf = tmp_path / "my_conf"
    (conf / "table").mkdir(parents=True)
    (conf / "experiment").mkdir()
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [demo]\nseed: 3\n")
    (conf / "table" / "mine.yaml").write_text(
        "# What it is.\nseeds: [0]\nrows: {KD: [loss=kd]}\ncolumns: {c: [experiment=mine]}\n"
    )
    asked = ["--config-dir", str(conf), "table=mine", f"outputs={tmp_path}"]
    text = main([*asked, "dry=true"])
    assert "0/1 done, 1 missing" in text
    assert f"--config-dir {conf} experiment=mine loss=kd seed=0" in text
    assert "missing (0/1)" in main([f"--config-dir={conf}", *asked[2:]])
    with pytest.raises(ConfigError, match="no such table; nearest: mine"):
        main([*asked[:2], "table=mime"])
    with pytest.raises(ConfigError, match="no such table"):
        main(asked[2:])
    with pytest.raises(ConfigError, match=r"--config-dir: .*/nowhere: no such directory"):
        main(["--config-dir", str(tmp_path / "nowhere"), "table=mine"])


def test_a_published_folder_opens_as_its_table_and_as_a_report(tmp_path):
    asked = [f"outputs={DEMO}"]
    assert main([*asked, "format=markdown"]) in (DEMO / "table.md").read_text()
    assert json.loads(main([*asked, "format=json"])) == json.loads((DEMO / "table.json").read_text())[0]
    wide = main([*asked, "columns=params", "compare=KD,CE"])
    assert "5,142" in wide
    assert "KD minus CE, the same seeds" in wide
    path = tmp_path / "demo.html"
    assert main([*asked, "format=html", f"out={path}"]) == f"wrote {path}"
    text = shown(path.read_text())
    assert "12 of 12 planned values are there" in text
    assert "reliability and classes, which need predictions, are left out" in text
    assert "90.75 ± 2.00" in text
    for words, error in (
        ("plan=true", "plan: .* holds published records alone, no runs"),
        ("execute=true", "execute: .* holds published records alone"),
        ("table=ttm_same", "table: ttm_same: .* holds another table, demo"),
        ("metric=test/top2", "has no test/student/top2"),
    ):
        with pytest.raises(KdrunError, match=error):
            main([*asked, words])


def test_costs_are_rounded_and_minus_signs_are_not_hyphens():
    assert _hours({"CPU-h": 0.00042, "GPU-h": 0.5}) == "< 1 CPU-min, 30 GPU-min"
    assert _hours({"CPU-h": 2.3456}) == "2.3 CPU-h"
    assert _hours({"CPU-h": 1234.5}) == "1,234 CPU-h"
    assert signed("a-b -> c: -0.50 (-1 to +1)") == "a-b -> c: \N{MINUS SIGN}0.50 (\N{MINUS SIGN}1 to +1)"
    assert marked("`a<b` & c") == "<code>a&lt;b</code> &amp; c"


def test_a_curve_of_one_evaluation_says_its_value():
    one = curves.band([{300: 0.5}, {300: 0.6}], "range")
    assert "55, evaluated once, at step 300" in svg(lambda paths: curves.draw({"KD": one}, "test/top1", paths), "t")


def test_a_reliability_picture_names_its_run_and_its_images():
    judged = (torch.tensor([0.9, 0.6]).double(), torch.tensor([1.0, 0.0]).double())
    text = svg(lambda paths: reliability.draw({"student": judged}, paths, "distill/s0-a, test images"), "t")
    assert "distill/s0-a, test images" in text
    assert "ECE 35.00%, accuracy 50.0%, confidence 75.0%" in text


def test_the_gallery_links_each_published_table_to_its_report(tmp_path, monkeypatch):
    lines = gallery.markdown().splitlines()[2:]
    names = {path.parent.name for path in (ROOT / "outputs" / "published").glob("*/published.json")}
    assert {re.search(r'href="\.\./reports/(\w+)\.html"', line)[1] for line in lines} == names
    assert "| `test/top1` | 4 x 1 cells, 3 seeds, 12 runs: resnet8 on digits, 300 steps |" in "\n".join(lines)
    assert all(line.count("|") == 5 for line in lines)
    monkeypatch.setattr(gallery, "folders", lambda: [Path("outputs/published/demo")])
    assert gallery.write(tmp_path) == [tmp_path / "demo.html"]
    assert gallery.write(tmp_path) == [], "it is as new as its records"
    assert str(ROOT) not in (tmp_path / "demo.html").read_text()
    assert gallery.MARK in (ROOT / "docs" / "results" / "gallery.md").read_text()
