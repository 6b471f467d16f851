"""docs/notebook.ipynb: its cells run from top to bottom, and what it shows of a student is what the record has."""

import json
import re
import shlex
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from kdrun.cli.command import main
from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# Of the sweep: fewer labels, one process, and a run of moments.
SHORT = {
    "dataset.num_labels": "50", "engine.slots": "1", "schedule.steps": "20", "schedule.eval_every_steps": "20",
    "teacher.steps": "20", "execution.device": "cpu",
}  # fmt: skip


def shortened(words: list[str]) -> list[str]:
    given = dict(word.partition("=")[::2] for word in words)
    return [f"{key}={value}" for key, value in (given | SHORT).items()]


def run(source: str, namespace: dict) -> None:
    """A cell, as IPython would: `!` starts a line for the shell, in which names in braces stand for their values."""
    if not source.startswith("!"):
        exec(compile(source, NOTEBOOK.name, "exec"), namespace)
        return
    line = source[1:].replace("\\\n", " ").removesuffix(" | cat")
    python, m, kdrun, command, *words = shlex.split(line.format(**namespace))
    assert [python, m, kdrun] == [sys.executable, "-m", "kdrun"]
    assert main([command, *shortened(words)]) == 0


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return notebook["cells"]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_finds_the_accuracy_of_the_record(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    ours: dict = {}
    try:
        for cell in cells:
            if cell["cell_type"] == "code":
                run("".join(cell["source"]), ours)
        assert len(plt.get_fignums()) == 3
    finally:
        plt.close("all")
    assert {(row["loss"], row["seed"]) for row in ours["rows"]} == {("ce", 0), ("ce", 1), ("kd", 0), ("kd", 1)}
    assert ours["accuracy"] == pytest.approx(ours["best"]["top1"], abs=1e-6)
    assert ours["predicted"][ours["chosen"]] != ours["test_targets"][ours["chosen"]]
    assert ours["falls"].shape == (8, 8)
    assert ours["falls"].abs().max() > 0
    assert torch.allclose(ours["teacher"].sum(1), torch.ones(400))


def test_what_the_notebook_shows_is_small_and_names_no_machine(cells):
    assert NOTEBOOK.stat().st_size < 100_000
    told = "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))
    assert not re.search(r"(/home|/root|/tmp|/Users|https?:)", told)
    assert all(output["output_type"] != "error" for cell in cells for output in cell.get("outputs", []))
