"""What is printed and written: on any terminal, of names that are no text, and of texts that look like formulas."""

import io
import json
import lzma
import os
import sys
from types import SimpleNamespace

import pytest
import yaml

from kdrun.cli.command import main, print_anything
from kdrun.config.nodes import read_conf
from kdrun.core.errors import ConfigError
from kdrun.core.files import write_json, write_text
from kdrun.results.cell import Cell
from kdrun.results.formats import csv_cell, to_csv
from kdrun.results.papers import Paper
from kdrun.results.table import Table
from kdrun.runs.finished import Kept
from kdrun.runs.record import read_record, write_record
from kdrun.runs.shape import fault
from kdrun.runs.trained import _temperature
from tests.conftest import ROOT
from tests.records import whole

ODD = os.fsdecode(b"caf\xe9.png")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_any_terminal_can_print_a_table(tmp_path, monkeypatch, encoding):
    for seed in (0, 1):
        write_record(
            tmp_path / f"runs/distill/digits/n20/s{seed}-{seed}",
            whole(str(seed), seed, metrics={"test/student/top1": 0.5 + seed / 10}),
        )
    shown = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["table", f"outputs={tmp_path}"]) == 0
    print(f"{ODD} — …")
    shown.flush()
    text = shown.buffer.getvalue().decode(encoding)
    assert f"55.00 {'+-' if encoding == 'ascii' else '±'} 7.07 (n=2)" in text
    assert "caf\\xe9.png" in text
    assert encoding != "ascii" or "caf\\xe9.png - ..." in text


def test_what_stands_in_place_of_a_stream_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    print_anything()
    print("±")
    assert sys.stdout.getvalue() == "±\n"


def test_files_keep_names_that_are_no_text(tmp_path):
    write_json(tmp_path / "a.json", {ODD: [ODD, "±"]})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {ODD: [ODD, "±"]}
    write_text(tmp_path / "a.yaml", yaml.safe_dump({"path": ODD}, allow_unicode=True))
    assert yaml.safe_load((tmp_path / "a.yaml").read_bytes()) == {"path": ODD}
    write_record(tmp_path, whole(warnings=[ODD]))
    assert (read_record(tmp_path) or {})["warnings"] == [ODD]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx"])
def test_no_cell_of_a_csv_is_a_formula(text):
    assert csv_cell(text) == f"'{text}"
    table = Table("t", "test/top1", [text], ["r56"], {(text, "r56"): Cell({"k": -0.5})})
    written = to_csv(table).split("\n", 1)[1]
    assert written.lstrip('"').startswith(f"'{text}")
    assert ",-50.0," in written, "numbers stay numbers"
    assert csv_cell(-0.5) == -0.5
    assert csv_cell("plain") == "plain"


@pytest.mark.parametrize(
    "name", ["../../conf/table/demo", "../table/demo", "/etc/passwd", "demo.yaml", "", ".", "x" * 300]
)
@pytest.mark.parametrize("kind", ["table", "paper"])
def test_names_of_tables_and_papers_are_plain_words(kind, name):
    with pytest.raises(ConfigError, match=f"no such {kind}"):
        read_conf(kind, name, Paper)


def test_every_published_record_is_whole():
    count = 0
    for path in sorted((ROOT / "outputs" / "published").glob("*/records.jsonl*")):
        text = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for line in text.splitlines():
            assert fault(json.loads(line)) is None, path
            count += 1
    assert count > 1000


@pytest.mark.parametrize(("images", "known"), [(1, None), (99, None), (100, 0.5), (None, 0.5)])
def test_few_validation_images_give_no_temperature(images, known):
    class Run:
        record = whole(metrics={"val/student/temperature": 0.5}, split={} if images is None else {"val": images})
        metrics, checkpoint, config = (
            record["metrics"],
            "last",
            SimpleNamespace(dataset=SimpleNamespace(val_fraction=0.1)),
        )

    temperature, why = _temperature(Run, "student")
    assert temperature == known
    assert (why is None) == (known is not None)
    assert why is None or f"its {images} validation images are too few" in why


def test_kept_predictions_of_another_width_are_taken():
    import numpy as np

    kept = Kept.of({"index": np.arange(2, dtype=np.int32), "target": np.array([0, 1]), "logits": np.eye(2)})
    assert kept.logits.dtype.is_floating_point
    assert kept.index.tolist() == [0, 1]
