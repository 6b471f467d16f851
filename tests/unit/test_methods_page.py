"""docs/methods/index.md is what the classes and the benchmark make."""

import json
import re

import pytest

from kdrun.core.registry import registered
from scripts import methods
from scripts.bench.written import write

FIGURE = {"values": [1.0], "min": 1.0, "median": 1.5, "max": 12.345, "networks": "a -> b", "bench": "rivals"}


@pytest.fixture(scope="module")
def made() -> str:
    return methods.page()


def rows(text: str) -> dict[str, list[str]]:
    lines = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in text.splitlines() if line.startswith("| [`")]
    return {cells[0].split("`")[1]: cells for cells in lines}


def test_the_page_is_as_the_classes_make_it(made):
    assert methods.PAGE.read_text() == made, "run python scripts/methods.py"


def test_every_part_of_kdrun_and_no_plug_in_has_a_row_with_idea_equation_and_paper(made):
    ours = [
        name for kind in methods.HEADS for name, cls in registered(kind).items() if cls.__module__.startswith("kdrun.")
    ]
    names = re.findall(r"^\| \[`(\w+)`\]\(\w+\.md\) \|", made, re.M)
    assert names == ours
    for line in made.splitlines():
        if line.startswith("| [`"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) == 11, line
            assert all(cell.strip() for cell in cells[1:-1]), line
            assert cells[5] != " `-` ", line


def test_every_part_is_told_of_on_one_page_that_is_there():
    named = [name for names in methods.PAGES.values() for name in names.split()]
    assert sorted(named) == sorted(set(named))
    for page, names in methods.PAGES.items():
        text = (methods.PAGE.parent / f"{page}.md").read_text()
        missing = [name for name in names.split() if not re.search(rf"\b{name}\b", text)]
        assert not missing, page


def test_a_row_tells_what_the_part_needs(made):
    found = dict(zip(methods.HEADS, made.split("\n## ")[1:], strict=True))
    method, loss = rows(found["method"]), rows(found["loss"])
    assert method["fixmatch"][2:4] == ["2020", "Sohn et al. 2020, [arXiv 2001.07685](https://arxiv.org/abs/2001.07685)"]
    assert method["fixmatch"][7:] == ["(teacher); unlabeled images (weak, strong)", "mean"]
    assert method["kd_fixmatch"][7].endswith("; a run (outer)")
    assert method["peer_distill"][7:] == ["teacher; 2 students or more", "mean"]
    assert method["mixup_distill"][7] == "teacher; mixed images"
    assert method["contrastive"][7:] == ["-", "gathered"]
    assert loss["crd"][7:] == ["teacher; features prelogits; memory", "gathered"]
    assert loss["mae"][7:] == ["-", "mean"]


def test_views_are_counted_by_their_kind():
    assert methods.counted(("weak", "strong")) == "weak, strong"
    assert methods.counted(("weak", "weak_2", "strong", "strong_2", "strong_3")) == "2 weak, 3 strong"


def test_costs_come_from_the_benchmark_and_are_a_dash_where_it_has_none(tmp_path):
    figures = [
        {**FIGURE, "registry": "loss", "case": "at", "kind": "step / ce"},
        {**FIGURE, "registry": "loss", "case": "at", "kind": "step / kd"},
        {**FIGURE, "registry": "method", "case": "fixmatch", "kind": "step / ce"},
        {**FIGURE, "registry": "method", "case": "fixmatch", "kind": "images", "median": 120.0},
        {**FIGURE, "registry": "loss", "case": "gone", "kind": "step / ce"},
    ]
    [path] = write(tmp_path, {"cpu": "any", "threads": 1}, {"began": 0.0, "rounds": 3}, figures)
    text = methods.page(path)
    found = rows(text)
    assert found["at"][5:7] == ["1 / 1.5 / 12.3", "1 / 1.5 / 12.3"]
    assert found["fixmatch"][5:7] == ["1 / 1.5 / 12.3, 120 images", "-"]
    assert found["dho"][5:7] == ["-", "-"]
    assert "of 3 rounds\n  (a -> b; threads: 1, any)" in text
    assert "gone" not in found
    assert json.loads(path.read_text())["figures"]


def test_a_stale_page_is_told_and_made_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "PAGE", tmp_path / "docs" / "methods" / "index.md")
    monkeypatch.setattr(methods, "page", lambda: "new\n")
    methods.PAGE.parent.mkdir(parents=True)
    methods.PAGE.write_text("old\n")
    assert methods.main(["check=true"]) == 1
    assert capsys.readouterr().err == "error: docs/methods/index.md: is stale; run python scripts/methods.py\n"
    assert methods.PAGE.read_text() == "old\n"
    assert methods.main([]) == 0
    assert methods.main(["check=true"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wrote docs/methods/index.md", "docs/methods/index.md: up to date",
    ]  # fmt: skip
    assert methods.main(["chek=true"]) == 2
