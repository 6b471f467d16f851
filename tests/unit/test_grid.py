"""Columns that are written once for all values of a grid, and what rows and columns show in place of a table's metric."""

import pytest

from kdrun.core.errors import ConfigError
from kdrun.core.schema import build
from kdrun.results import fill
from kdrun.results.papers import Paper
from kdrun.results.spec import TableConfig
from kdrun.results.table import Table, figure

PLAIN = {"seeds": [0], "rows": {"KD": ["loss=kd"], "CE": ["loss=ce"]}}
GRID = {
    **PLAIN,
    "columns": {"<d> <k>-shot": ["x=<d>", "n=<k>/class"], "b 2-shot": ["x=b", "n=7"], "z": ["y={<q>: 1}"]},
    "grid": {"d": ["a", "b"], "k": [1, 2]},
    "aggregates": {"<k>-shot": ["<d> <k>-shot"], "a": ["a <k>-shot"], "all": ["<d> <k>-shot"]},
}


def test_a_grid_is_a_column_for_each_of_its_values_and_what_is_written_out_wins():
    spec = build(TableConfig, GRID, "table it")
    assert list(spec.columns.items()) == [
        ("a 1-shot", ["x=a", "n=1/class"]), ("a 2-shot", ["x=a", "n=2/class"]), ("b 1-shot", ["x=b", "n=1/class"]),
        ("b 2-shot", ["x=b", "n=7"]), ("z", ["y={<q>: 1}"]),
    ]  # fmt: skip
    assert spec.aggregates == {
        "1-shot": ["a 1-shot", "b 1-shot"], "2-shot": ["a 2-shot", "b 2-shot"], "a": ["a 1-shot", "a 2-shot"],
        "all": ["a 1-shot", "a 2-shot", "b 1-shot", "b 2-shot"],
    }  # fmt: skip
    assert spec == build(TableConfig, spec.model_dump(), "as it is published") == spec.replace(seeds=[0])
    assert spec.grid == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"d": ["a", "b"], "k": [1, 1]}}, "grid: k: a value is there twice"),
        ({"grid": {**GRID["grid"], "e": [1]}}, "grid: e: no column has <e> in its name"),
        ({"columns": {"<d>": ["n=<k>"], "<k>": []}}, "columns: <d>: has <k> in its words, but not in its name"),
        ({"grid": {"d": ["a", "b"], "k": []}}, "grid: k: give it a value or more"),
        ({"grid": {"d": "a"}}, "grid.d: must be a valid list, got 'a'"),
        ({"grid": {"d": [None]}}, "grid.d.0"),
        ({"aggregates": {"<k>-shot": ["<d> 3-shot"]}}, "1-shot: a 3-shot: no such column; nearest: a 2-shot"),
    ],
)
def test_a_grid_with_a_mistake_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(TableConfig, {**GRID, "aggregates": {}, **changes}, "table it")


SHOWS = {"r18": "test/student_1/top1", "deep": "probe/student_1/top5", "CE": "test/ce_head/top1"}


@pytest.mark.parametrize(
    ("row", "column", "asked", "shown"),
    [
        ("KD", "r18", "test/top1", "test/student_1/top1"), ("KD", "r18", "test/ece", "test/student_1/ece"),
        ("KD", "r18", "val/top1", "val/student_1/top1"), ("KD", "r18", "test/student_2/top1", "test/student_2/top1"),
        ("KD", "deep", "test/top1", "probe/student_1/top5"), ("KD", "deep", "val/ece", "val/student_1/ece"),
        ("CE", "plain", "test/nll", "test/ce_head/nll"), ("KD", "plain", "test/top1", "test/top1"),
    ],
)  # fmt: skip
def test_a_metric_that_is_asked_for_keeps_the_part_that_is_its_own(row, column, asked, shown):
    columns = {"r18": [], "deep": [], "plain": []}
    spec = build(TableConfig, {**PLAIN, "columns": columns, "shows": SHOWS}, "table it")
    assert spec.metric_of(row, column, asked) == shown


def test_numbers_stand_beside_what_a_column_shows_and_reasons_below(monkeypatch):
    cell = {"table": "1", "protocol": "last", "tag": "paper"}
    cells = [
        {**cell, "row": "KD", "column": "r18", "mean": 70.0}, {**cell, "row": "KD", "column": "deep", "metric": "top5", "mean": 90.0},
        {**cell, "row": "CE, own", "column": "deep", "metric": "top5", "mean": 85.0}, {**cell, "row": "New", "column": "deep", "mean": 9.0},
        {**cell, "row": "Late", "column": "r18", "mean": 60.0},
    ]  # fmt: skip
    reasons = [{"rows": ["CE, own"], "why": "other images"}]
    paper = build(Paper, {"source": "it", "unit": "percent", "cells": cells, "published_only": reasons}, "paper")
    monkeypatch.setattr(fill, "read_paper", lambda _: paper)
    content = {**PLAIN, "columns": {"r18": [], "deep": []}, "shows": {"deep": "test/s/top5"}, "paper": "it"}
    table = fill.empty_table("t", build(TableConfig, content, "table it"), "test/top1", "last")
    texts = [table.theirs("KD", column) for column in ("r18", "deep")]
    assert [text and text.printed() for text in texts] == ["70.00", "90.00"]
    assert table.published == {"CE, own": "other images", "Late": ""}  # New has a top-1 where the column is a top-5
    text = table.to_text()
    assert "published only: CE, own: other images" in text
    assert "published only, in no table beside this paper: Late" in text
    assert "deep: s in place of the headline, top5 in place of top1" in text
    assert fill.empty_table("t", build(TableConfig, content, ""), "val/top1", "last").published == {}
    for entry, message in (
        ({"rows": ["CE own"], "why": "other images"}, "published_only: CE own: no such number; nearest: CE, own"),
        ({"table": "2", "why": "other images"}, "published_only: other images: names no number"),
        ({"rows": ["New"], "columns": ["r18"], "why": "other images"}, "names no number"),
        ({"rows": ["New"], "why": ""}, "why"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(Paper, {"source": "it", "unit": "percent", "cells": cells, "published_only": [entry]}, "paper")


def test_params_are_those_of_the_network_that_a_column_shows():
    nets = {"student_1": {"num_params": 11}, "student_2": {"num_params": 3}}
    record = {"nets": nets, "headline": "student_1"}
    assert [figure(record, "params", net) for net in (None, "student_1", "student_2", "ensemble")] == [11, 11, 3, 11]
    assert Table("t", "test/top1", [], [], {}).metric_of("a", "b") == "test/top1"
