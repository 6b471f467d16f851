"""DHO's settings and the paper's numbers, typed here a second time."""

from collections import Counter
from math import isclose

import pytest
import yaml

from kdrun.config import CONF_DIR
from kdrun.errors import ConfigError
from kdrun.papers import read_paper
from kdrun.plan import Composer

SHOTS = [f"{k}-shot" for k in (1, 2, 4, 8, 16)]


@pytest.fixture(scope="module")
def composer():
    with Composer() as made:
        yield made


def test_the_paper_s_form_and_the_code_s(composer):
    paper = composer.typed(["method=dho"])
    assert (paper.losses["ce"].weight, paper.losses["kd"].weight, paper.losses["kd"].temperature) == (0.5, 0.5, 2)
    assert (paper.losses["kd"].scale, paper.method.concatenate, paper.method.unlabeled_ratio) == ("none", True, 1)
    assert paper.method.ce_shares == [k / 20 for k in range(21)]
    assert paper.method.kd_head_temperatures == [0.5, 0.75, 1, 1.25, 1.5, 2, 4]
    assert (paper.method.ce_share, paper.method.kd_head_temperature) == (0.4, 0.5)
    code = composer.typed(["method=dho", "method/variant=code", "schedule=dho200_code"])
    assert (code.losses["kd"].scale, code.method.concatenate) == ("temperature_squared", False)
    assert (code.schedule.decay.name, code.schedule.warmup_epochs) == ("linear", 20)
    low = composer.typed(["method=dho", "method/variant=code_low_shot"])
    assert (low.losses["ce"].weight, low.losses["kd"].weight) == (1, 1)
    assert (low.method.combination, low.method.ce_share, low.method.kd_head_temperature) == ("fixed", 0.5, 0.5)
    mine = composer.typed(["method=dho", "method/variant=code", "loss=wttm", "method.concatenate=true"])
    assert (set(mine.losses), mine.method.concatenate) == ({"ce", "wttm"}, True)  # the command line wins


def test_the_ten_datasets_schedule(composer):
    schedule = composer.typed(["method=dho", "schedule=dho200"]).schedule
    assert (schedule.epochs, schedule.batch_size, schedule.optimizer) == (200, 64, "adamw")
    assert (schedule.lr, schedule.weight_decay, schedule.decay.name) == (1e-3, 1e-2, "cosine")
    assert (schedule.warmup_steps, schedule.warmup_epochs) == (None, None)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["method=dho", "loss=ce"], "loss: method=dho needs a term against the teacher; add one, or choose method=supervised"),
        (["method=dho", "~loss.ce"], "loss: method=dho needs a term against the labels; add one, or choose method=sho"),
        (["method=sho", "loss=crd"], "loss.crd: crd remembers single images, and method=sho shows it two batches a step; choose another term"),
        (["method=dho", "method.kd_head=mlp", "method.language_aware_init=both"], "method: language_aware_init: an mlp head has no weight for each class; set it to ce or none"),
        (["method=dho", "method.ce_share=2"], "method.ce_share: must be less than or equal to 1, got 2"),
        (["method=sho", "method.pcgrad=true", "schedule.compile=true"], "method.pcgrad: needs two backward passes through a network; set schedule.compile=null"),
    ],
)  # fmt: skip
def test_mistakes(composer, overrides, line):
    with pytest.raises(ConfigError) as caught:
        composer.typed(overrides)
    assert caught.value.lines == (line,) or list(caught.value.lines) == [line]


# --------------------------------------------------------------------------------------------- the paper's numbers


def test_cells_by_table():
    counts = Counter(cell.table for cell in read_paper("dho").cells)
    assert counts == {
        "imagenet_few_shot": 2 * (1 + 7 * 5) + 1 + 5 + 4 * 5, "out_of_distribution": 13 * 6 + 2 * 4,
        "imagenet_low_shot": 19 * 2 + 2, "linear_eval": 6, "language_aware_init": 4, "eight_datasets": 7 * 5,
        "entropy": 8, "out_of_distribution_full": 9 * 5, "ten_datasets": 4 * 5, "heads": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "row", "column", "mean"),
    [
        ("imagenet_few_shot", "KD, no labels", "r18 0-shot", 51.0),
        ("imagenet_few_shot", "CE", "r18 16-shot", 8.2),
        ("imagenet_few_shot", "CE + KD feature", "r50 4-shot", 41.3),
        ("imagenet_few_shot", "CE + KD logit", "r50 16-shot", 62.3),
        ("imagenet_few_shot", "DHO", "r18 1-shot", 51.8),
        ("imagenet_few_shot", "DHO-F", "r50 8-shot", 65.5),
        ("imagenet_few_shot", "DKD + DHO", "r18 4-shot", 40.9),
        ("imagenet_few_shot", "Tip-Adapter-F RN50 (teacher)", "16-shot", 65.4),
        ("out_of_distribution", "CoOp + DHO", "Sketch", 49.3),
        ("imagenet_low_shot", "DHO L/14", "10 %", 85.9),
        ("linear_eval", "DHO", "top5", 89.3),
        ("language_aware_init", "both heads, aligned", "B/16 1 %", 78.7),
        ("eight_datasets", "PCGrad", "8-shot", 67.5),
        ("eight_datasets", "WKD + DHO", "2-shot", 64.5),
        ("entropy", "DHO, entropy", "B/16 10 %", 82.65),
        ("out_of_distribution_full", "L/14 from H/14, 1 %", "A", 60.8),
        ("ten_datasets", "nonlinear KD head", "4-shot", 67.8),
        ("heads", "combined", "16-shot", 65.37),
    ],
)
def test_cells(table, row, column, mean):
    [cell] = [c for c in read_paper("dho").cells if (c.table, c.row, c.column) == (table, row, column)]
    assert (cell.mean, cell.std, cell.n, cell.tag) == (mean, None, None, "paper")


def test_means_that_the_paper_prints_follow_from_its_cells():
    """Avg of out_of_distribution is the mean of the four sets beside Val, and Val, within rounding."""
    cells = {(c.row, c.column): c.mean for c in read_paper("dho").cells if c.table == "out_of_distribution"}
    for (row, column), mean in cells.items():
        if column == "Avg":
            own = sum(cells[row, name] for name in ("Val", "V2", "Sketch", "R", "A")) / 5
            assert isclose(own, mean, abs_tol=0.11), row


def test_rows_of_our_table_have_the_paper_s_names():
    rows = yaml.safe_load((CONF_DIR / "table" / "dho_digits_resnet.yaml").read_text())["rows"]
    ours = {"DHO, nonlinear KD head", "DHO, code's loss"}
    assert set(rows) - ours <= {cell.row for cell in read_paper("dho").cells}
