"""kdrun plot confusion: what images of each class are taken for."""

import re
from pathlib import Path

import pytest
import torch

from kdrun.cli.plot import main
from kdrun.core.errors import ConfigError
from kdrun.metrics import confusion_matrix
from kdrun.results.plots.confusion import draw
from kdrun.results.plots.figure import texts_stay_text
from tests.unit.test_plots import save, write_run


def test_counts_by_hand():
    predicted, target = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 0, 2, 2])
    assert confusion_matrix(predicted, target, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def texts(tmp_path: Path, classes: int, names: list[str]) -> list[str]:
    """The texts of the picture of a network that takes the 7 images of class 0 for class 1, and knows the others."""
    target = torch.cat([torch.zeros(7, dtype=torch.int64), torch.arange(classes)])
    logits = torch.eye(classes)[[1] * 7 + list(range(classes))]
    with texts_stay_text():
        draw(logits, target, names, [tmp_path / "c.svg"])
    return re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "c.svg").read_text())


def test_few_classes_have_their_names_and_numbers_and_many_have_neither(tmp_path):
    few = texts(tmp_path, 20, [f"class {k}" for k in range(19)] + ["an uncommonly long name"])
    assert few.count("7") == 1
    assert few.count("1") == 20
    assert {"class 0", "an uncommonly lon…", "74.07% of 27 images are right"} <= set(few)
    many = texts(tmp_path, 21, [f"class {k}" for k in range(21)])
    assert not {"7", "class 0"} & set(many)
    assert "75.00% of 28 images are right" in many


def test_a_run_s_picture_is_drawn_from_its_predictions(tmp_path):
    run = write_run(tmp_path / "runs/m/d/nall/s0-0", {})
    save(run, "student", torch.eye(3), [0, 1, 1])
    main(["confusion", f"run={run}"])
    assert sorted(path.name for path in (run / "analysis").iterdir()) == ["confusion-test.png", "confusion-test.svg"]
    with pytest.raises(ConfigError, match=r"write a name that ends in \.png or \.svg"):
        main(["confusion", f"run={run}", "out=x.pdf"])
