"""TTM's 13 pairs: numbers typed here from the paper a second time, held against what is composed and what is filed."""

import math
from math import isclose

import numpy as np
import pytest
import torch
import yaml

from kdrun.config.key import run_directory, run_key
from kdrun.config.nodes import dump
from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.methods.step import Setup
from kdrun.results import fill as tables
from kdrun.results.cell import Cell
from kdrun.results.papers import Paper, read_paper
from kdrun.results.spec import TableConfig
from kdrun.results.table import Table
from kdrun.runs.record import write_record
from kdrun.training.check import check
from kdrun.training.optimizer import parameter_groups
from kdrun.training.rates import LearningRate
from tests.records import whole

# teacher, student: gamma, then weight of TTM, of WTTM (arXiv 2402.11148, tables 8 and 9); accuracy of the teacher
PAIRS = {
    ("resnet56", "resnet20"): (0.3, 7, 1.5, 72.34),
    ("resnet110", "resnet20"): (0.2, 8, 2, 74.31),
    ("resnet110", "resnet32"): (0.1, 33, 1.5, 74.31),
    ("resnet32x4", "resnet8x4"): (0.1, 100, 3, 79.42),
    ("wrn_40_2", "wrn_16_2"): (0.1, 101, 4, 75.61),
    ("wrn_40_2", "wrn_40_1"): (0.1, 76, 3, 75.61),
    ("vgg13_cifar", "vgg8_cifar"): (0.1, 45, 2.25, 74.64),
    ("vgg13_cifar", "mobilenetv2_half"): (0.2, 16, 3, 74.64),
    ("resnet50_cifar", "mobilenetv2_half"): (0.2, 20, 5, 79.34),
    ("resnet50_cifar", "vgg8_cifar"): (0.1, 70, 2, 79.34),
    ("resnet32x4", "shufflenetv1"): (0.2, 12, 1.4, 79.42),
    ("resnet32x4", "shufflenetv2"): (0.4, 40, 16, 79.42),
    ("wrn_40_2", "shufflenetv1"): (0.3, 8, 3, 75.61),
}
# gamma and weight of WTTM beside CRD and beside ITRD (table 10)
COMBINED = {
    ("resnet56", "resnet20"): ((0.3, 0.6), (0.5, 5)),
    ("resnet110", "resnet20"): ((0.2, 1.4), (0.3, 1.5)),
    ("resnet110", "resnet32"): ((0.2, 1), (0.3, 0.015)),
    ("resnet32x4", "resnet8x4"): ((0.2, 4), (0.1, 1.5)),
    ("wrn_40_2", "wrn_16_2"): ((0.1, 4), (0.3, 6)),
    ("wrn_40_2", "wrn_40_1"): ((0.1, 2), (0.4, 0.08)),
    ("vgg13_cifar", "vgg8_cifar"): ((0.2, 4), (0.1, 0.5)),
    ("vgg13_cifar", "mobilenetv2_half"): ((0.3, 4.2), (0.3, 0.03)),
    ("resnet50_cifar", "mobilenetv2_half"): ((0.3, 3), (0.2, 0.02)),
    ("resnet50_cifar", "vgg8_cifar"): ((0.1, 3), (0.1, 1)),
    ("resnet32x4", "shufflenetv1"): ((0.2, 0.4), (0.3, 0.6)),
    ("resnet32x4", "shufflenetv2"): ((0.4, 12), (0.4, 0.8)),
    ("wrn_40_2", "shufflenetv1"): ((0.2, 0.16), (0.1, 0.2)),
}
CORRELATION_ONLY = {
    ("resnet50_cifar", "mobilenetv2_half"),
    ("resnet50_cifar", "vgg8_cifar"),
    ("wrn_40_2", "shufflenetv1"),
}
# mdistiller's beta for DKD; none is published for resnet110 -> resnet20 and ResNet-50 -> vgg8 (ours)
DKD = dict(zip(PAIRS, (2, 2, 2, 8, 6, 6, 6, 6, 8, 8, 8, 8, 8), strict=True))
WITHOUT_CE = {"r56-r20": 0.6, "r110-r20": 0.4, "r110-r32": 0.4, "r32x4-r8x4": 0.5, "w40_2-w16_2": 0.2}
WITHOUT_CE |= {"w40_2-w40_1": 0.5, "vgg13-vgg8": 0.2}
SLOW = {"mobilenetv2_half", "shufflenetv1", "shufflenetv2"}
pairs = pytest.mark.parametrize("pair", PAIRS, ids="_".join)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A dataset of a few images of CIFAR-100's shape, 100 classes."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    train, test = (np.zeros((n, 32, 32, 3), np.uint8) for n in (200, 100))
    labels = np.arange(200) % 100
    np.savez(path, train_images=train, train_labels=labels, test_images=test, test_labels=labels[:100])
    return build(
        lookup("dataset", "npz", "").Config, {"name": "npz", "path": str(path), "val_fraction": 0.0}, "dataset"
    )


def experiment(pair) -> str:
    return f"experiment=ttm/{'_'.join(pair)}"


def table(name):
    return yaml.safe_load((CONF_DIR / "table" / f"{name}.yaml").read_text())


def test_there_is_an_experiment_for_each_pair():
    files = {path.stem for path in (CONF_DIR / "experiment" / "ttm").glob("*.yaml")}
    others = ("imagenet", "cifar10_", "base")
    assert {name for name in files if not name.startswith(others)} == {"_".join(p) for p in PAIRS}


@pairs
def test_the_paper_s_recipe_and_coefficients_are_in_force(composer, images, pair):
    gamma, ttm, wttm, _ = PAIRS[pair]
    config = composer.typed([experiment(pair), "loss=wttm"])
    assert (config.losses["wttm"].gamma, config.losses["wttm"].weight) == (gamma, wttm)
    assert config.losses["ce"].weight == 1
    assert config.teacher.source == "train"
    assert (config.teacher.model.name, config.students[0].name) == pair
    assert (config.dataset.name, config.dataset.num_labels, config.dataset.val_fraction) == ("cifar100", None, 0)
    schedule = config.schedule
    assert (schedule.epochs, schedule.batch_size, schedule.optimizer, schedule.lr) == (240, 64, "sgd", 0.05)
    assert (schedule.momentum, schedule.nesterov, schedule.weight_decay) == (0.9, False, 5e-4)
    assert (schedule.decay.milestones_epochs, schedule.decay.gamma) == ([150, 180, 210], 0.1)
    assert schedule.clock(50000).total_steps == 240 * 782
    assert schedule.lr_for == ({pair[1]: 0.01} if pair[1] in SLOW else {})
    assert config.method_class.requires(config)["teacher"].schedule == schedule.replace(lr_for={})
    check(config.replace(dataset=images))  # the networks take images of 32 pixels, and the loss what they give

    config = composer.typed([experiment(pair), "loss=ttm"])
    assert (config.losses["ttm"].gamma, config.losses["ttm"].weight) == (gamma, ttm)
    assert composer.typed([experiment(pair), "loss=dkd"]).losses["dkd"].beta == DKD[pair]


@pairs
def test_coefficients_of_combinations(composer, pair):
    with_crd, with_itrd = COMBINED[pair]
    losses = composer.typed([experiment(pair), "loss=wttm_crd"]).losses
    assert losses.keys() == {"ce", "wttm", "crd"}
    assert (losses["wttm"].gamma, losses["wttm"].weight, losses["crd"].weight) == (*with_crd, 0.8)
    losses = composer.typed([experiment(pair), "loss=wttm_itrd"]).losses
    assert losses.keys() == {"ce", "wttm", "itrd"}
    assert (losses["wttm"].gamma, losses["wttm"].weight, losses["itrd"].weight) == (*with_itrd, 1)
    for itrd in (losses["itrd"], composer.typed([experiment(pair), "loss=itrd"]).losses["itrd"]):
        assert itrd.alpha == (1.01 if list(PAIRS).index(pair) < 7 else 1.5)
        assert itrd.correlation_weight == 2
        assert itrd.mutual_information_weight == (0 if pair in CORRELATION_ONLY else 1)


@pytest.mark.slow
def test_every_row_of_the_table_can_be_built(composer, images):
    """Of the pair with the most unlike networks; and the check that says so is one that can refuse."""
    pair, refused = "experiment=ttm/resnet50_cifar_mobilenetv2_half", {}
    for loss in sorted({row[0] for name, row in table("ttm_different")["rows"].items() if name != "Teacher"}):
        config = composer.typed([pair, loss])
        assert set(loss.removeprefix("loss=").split("_")) <= set(config.losses), loss
        try:
            check(config.replace(dataset=images))
        except ConfigError as error:
            refused[loss] = str(error)
    assert refused == {}
    with pytest.raises(ConfigError, match=r"loss\.fitnet: the student gives no stage9"):
        check(composer.typed([pair, "loss=fitnet", "loss.fitnet.feature=stage9"]).replace(dataset=images))


def test_ce_and_kd_have_the_literature_s_weights(composer):
    pick = experiment(("resnet56", "resnet20"))
    assert composer.typed([pick, "loss=ce"]).losses["ce"].weight == 1
    kd = composer.typed([pick, "loss=kd"]).losses
    assert (kd["ce"].weight, kd["kd"].weight, kd["kd"].temperature) == (0.1, 0.9, 4)


def test_the_learning_rate_of_a_student_reaches_its_optimizer(composer):
    config = composer.typed([experiment(("vgg13_cifar", "mobilenetv2_half")), "loss=ce"])
    setup = Setup(num_classes=100, in_chans=3, mean=(0.5,) * 3, std=(0.25,) * 3, train_target=torch.zeros(1).long())
    groups = parameter_groups(config.method_class(config, setup))
    assert {group["base_lr"] for group in groups} == {0.01}


def test_one_teacher_serves_all_students_losses_and_seeds(composer):
    def teacher(*overrides):
        config = composer.typed(list(overrides))
        return run_key(config.method_class.requires(config)["teacher"])

    shared = teacher("experiment=ttm/resnet32x4_resnet8x4", "loss=wttm")
    assert teacher("experiment=ttm/resnet32x4_shufflenetv1", "loss=kd", "seed=4") == shared
    recipe = ["dataset=cifar100", "schedule=cifar240", "method=supervised", "student=resnet32x4"]
    assert run_key(composer.typed(recipe)) == shared


@pytest.mark.parametrize(
    ("name", "gamma", "weight", "teacher"),
    [
        ("imagenet_resnet34_resnet18", 0.8, 1.6, "resnet34.tv_in1k"),
        ("imagenet_resnet50_mobilenetv1", 0.7, 3.5, "resnet50.tv_in1k"),
        ("imagenet_deit3_small_deit_tiny", 0.8, 1.6, "deit3_small_patch16_224.fb_in22k_ft_in1k"),
    ],
)
def test_imagenet_pairs_compose(composer, tmp_path, name, gamma, weight, teacher):
    import timm

    config = composer.typed([f"experiment=ttm/{name}", f"dataset.root={tmp_path}", "loss=wttm"])
    assert (config.losses["wttm"].gamma, config.losses["wttm"].weight) == (gamma, weight)
    assert (config.teacher.source, config.teacher.model.name) == ("timm", teacher)
    assert teacher in timm.list_pretrained()
    assert timm.get_pretrained_cfg(teacher).num_classes == 1000
    assert (config.dataset.val_fraction, config.dataset.size, config.views.size) == (0, 256, 224)
    assert (
        composer.typed([f"experiment=ttm/{name}", f"dataset.root={tmp_path}", "loss=ttm"]).losses["ttm"].gamma == gamma
    )


def test_the_short_experiment_takes_a_file_or_trains_its_teacher(composer):
    config = composer.typed(["experiment=ttm/cifar10_short", "loss=wttm"])
    assert (config.teacher.source, config.teacher.model.args["shortcut"]) == ("file", "A")
    assert (config.dataset.num_labels, config.schedule.epochs, config.schedule.steps) == (10_000, 10, None)
    trained = composer.typed(["experiment=ttm/cifar10_short", "loss=wttm", "teacher=resnet56"])
    assert (trained.teacher.source, trained.teacher.model.name) == ("train", "resnet56")
    assert not {"path", "rename"} & set(dump(trained)["teacher"])


# --------------------------------------------------------------------------------------------- the paper's numbers

METHODS = {
    "Teacher", "CE", "FitNet", "AT", "VID", "RKD", "PKT", "CRD", "ITRD", "KD", "DIST", "DKD", "TTM", "WTTM",
    "WTTM+CRD", "WTTM+ITRD",
}  # fmt: skip


def test_papers_type_and_their_figures_are_in_range():
    names = [path.stem for path in sorted((CONF_DIR / "paper").glob("*.yaml"))]
    assert names
    means = [(name, c.row, c.column, c.metric, c.mean) for name in names for c in read_paper(name).cells]
    assert [
        cell
        for cell in means
        if cell[-1] is not None and not (-100 if cell[-2] == "confidence_gap" else 0) < cell[-1] < 100
    ] == []


def test_the_paper_s_cells_are_all_there():
    cells = read_paper("ttm").cells
    same, different = table("ttm_same")["columns"], table("ttm_different")["columns"]
    assert (len(same), len(different)) == (7, 6)
    cifar = {(cell.row, cell.column): cell for cell in cells if cell.table == "cifar100"}
    expected = {(row, column) for row in METHODS for column in (*same, *different)}
    assert set(cifar) == expected | {("WTTM without CE", column) for column in same}
    assert [place for place, cell in cifar.items() if cell.mean is None] == [("DKD", "r110-r20"), ("DKD", "r50-vgg8")]
    for (row, column), cell in cifar.items():
        copied = row in ("Teacher", "CE", "ITRD", "DKD", "WTTM without CE")
        assert (cell.std is None) == copied, (row, column)
        if not copied:
            assert cell.n == (3 if column in different or "ITRD" in row else 5), (row, column)


CIFAR100 = {  # mean, standard deviation, runs, protocol
    ("KD", "r56-r20"): (70.66, 0.24, 5, "last"),
    ("TTM", "r56-r20"): (71.83, 0.16, 5, "unknown"),
    ("WTTM", "r56-r20"): (71.92, 0.40, 5, "unknown"),
    ("WTTM", "w40_2-w16_2"): (76.37, 0.10, 5, "unknown"),
    ("DKD", "w40_2-w16_2"): (76.24, None, 5, "best"),
    ("CRD", "vgg13-vgg8"): (73.94, 0.22, 5, "last"),
    ("WTTM+ITRD", "r32x4-r8x4"): (77.36, 0.13, 3, "unknown"),
    ("WTTM+CRD", "r110-r32"): (74.52, 0.29, 5, "unknown"),
    ("WTTM without CE", "r110-r20"): (70.71, None, 5, "unknown"),
    ("TTM", "vgg13-mv2"): (68.98, 0.85, 3, "unknown"),
    ("AT", "r50-mv2"): (58.58, 0.54, 3, "last"),
    ("DIST", "w40_2-sv1"): (76.40, 0.03, 3, "unknown"),
    ("WTTM+ITRD", "r50-vgg8"): (76.00, 0.17, 3, "unknown"),
    ("RKD", "r32x4-sv1"): (72.28, 0.39, 3, "last"),
    ("ITRD", "r32x4-sv2"): (77.40, None, 3, "unknown"),
}


def test_cells_of_cifar100():
    cells = [c for c in read_paper("ttm").cells if c.table == "cifar100" and (c.row, c.column) in CIFAR100]
    assert {(c.row, c.column): (c.mean, c.std, c.n, c.protocol) for c in cells} == CIFAR100
    assert len(cells) == len(CIFAR100)


def test_means_over_the_13_pairs():
    """Worked out from another copy of the table."""
    cells = [cell for cell in read_paper("ttm").cells if cell.table == "cifar100"]
    for row, mean in {"KD": 72.39, "CRD": 73.47, "DIST": 73.76, "TTM": 73.66, "WTTM": 73.78}.items():
        values = [cell.mean for cell in cells if cell.row == row]
        assert len(values) == 13
        assert isclose(sum(values) / 13, mean, abs_tol=0.0051)


def test_cells_of_imagenet():
    paper = read_paper("ttm")
    found = {(c.table, c.row, c.column): c.mean for c in paper.cells}
    assert found["imagenet", "WTTM", "r34-r18"] == 72.19
    assert found["imagenet", "DIST", "r50-mv1"] == 73.24
    assert found["imagenet", "CTKD", "r50-mv1"] is None
    assert found["imagenet_teachers", "WTTM", "r152-r18"] == 72.39
    assert found["imagenet_deit", "WTTM", "deit3_s-deit_ti"] == 77.03
    assert sum(key[0].startswith("imagenet") for key in found) == 14 + 14 + 16 + 8


def test_the_teachers_of_the_paper():
    paper, columns = read_paper("ttm"), {**table("ttm_same")["columns"], **table("ttm_different")["columns"]}
    picked = {experiment(pair): accuracy for pair, (*_, accuracy) in PAIRS.items()}
    assert {column: paper.teacher(column) for column in columns} == {
        column: picked[overrides[0]] for column, overrides in columns.items()
    }


def test_a_paper_with_a_cell_twice_or_of_an_unknown_protocol_is_refused():
    cell = {"table": "1", "row": "KD", "column": "a", "mean": 50.0, "protocol": "last", "tag": "paper"}
    paper = {"source": "arXiv 0", "unit": "percent"}
    build(Paper, {**paper, "cells": [cell]}, "paper")
    for cells, message in (
        ([cell, cell], "1, KD, a is there twice"),
        ([{**cell, "mean": None, "n": 3}], "1, KD, a has no mean, but std or n"),
        ([{**cell, "protocol": "beste"}], "'beste' is not allowed"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(Paper, {**paper, "cells": cells}, "paper")
    with pytest.raises(ConfigError, match=r"paper=tmt: no such paper; .*ttm"):
        read_paper("tmt")


def test_without_ce_gamma_is_the_paper_s_and_no_weight_is_left_to_the_other_row(composer):
    columns = table("ttm_without_ce")["columns"]
    assert {column: float(overrides[1].partition("=")[2]) for column, overrides in columns.items()} == WITHOUT_CE
    config = composer.typed([*columns["r56-r20"], *table("ttm_without_ce")["rows"]["WTTM without CE"]])
    assert config.losses.keys() == {"wttm"}
    assert (config.losses["wttm"].gamma, config.losses["wttm"].weight) == (0.6, 1)
    assert composer.typed(["experiment=ttm/resnet56_resnet20", "loss=wttm", "~loss.ce"]).losses["wttm"].weight == 1.5


@pytest.mark.parametrize("rows", [table(f"ttm_{name}") for name in ("same", "different", "without_ce")])
def test_rows_and_columns_are_the_paper_s(rows):
    paper = read_paper(rows["paper"])
    assert set(rows["rows"]) <= {cell.row for cell in paper.cells if cell.table == "cifar100"}
    assert set(rows["columns"]) <= {cell.column for cell in paper.cells if cell.table == "cifar100"}


@pytest.mark.parametrize(
    ("accuracy", "warned"), [(0.7234, False), (0.7164, False), (0.7304, False), (0.7163, True), (0.7305, True)]
)
def test_a_table_warns_of_a_teacher_that_is_not_the_paper_s(accuracy, warned):
    cell = Cell({"k": 0.7}, teachers={"resnet56 (run)": accuracy})
    made = Table("t", "test/top1", ["KD"], ["r56-r20"], {("KD", "r56-r20"): cell}, read_paper("ttm"))
    line = f"warning: r56-r20: teacher resnet56 (run) has {100 * accuracy:.2f}, the paper's 72.34 (arXiv 2402.11148)"
    assert (line in made.footer()) == warned
    assert "warning" not in Table(made.title, made.metric, made.rows, made.columns, made.cells).to_text()


@pytest.mark.parametrize("source", ["train", "file"])
def test_a_planned_table_finds_the_teacher_and_its_paper(composer, tmp_path, monkeypatch, source):
    weights = tmp_path / "weights.th"
    weights.touch()
    column = ["experiment=demo"] if source == "train" else ["teacher=cifar10_resnet56_file", f"teacher.path={weights}"]
    config = composer.typed([*column, "loss=kd", f"execution.outputs={tmp_path}"])
    given = {"test/student/top1": 0.7, "test/teacher/top1": 0.5}
    record = whole("k", metrics=given)
    write_record(run_directory(config), {**record, "config": dump(config)})
    if source == "train":
        teacher = config.method_class.requires(config)["teacher"]
        write_record(run_directory(teacher), {**record, "metrics": {"test/student/top1": 0.5}})
    content = {"paper": "ttm", "seeds": [0], "rows": {"KD": ["loss=kd"]}, "columns": {"r56-r20": column}}
    monkeypatch.setattr(tables, "table_spec", lambda name: build(TableConfig, content, name))
    [line] = [line for line in tables.planned_table("one", tmp_path).footer() if line.startswith("warning")]
    assert f"({source})" in line or "supervised/digits" in line
    assert "has 50.00, the paper's 72.34" in line


def test_the_code_of_the_literature_is_in_force_for_each_pair(composer):
    """HobbitLong/RepDistiller (models/util.py, crd/memory.py) and yzd-v/cls_KD (configs/distillers/cifar100)."""
    run = experiment(next(iter(PAIRS)))
    assert composer.typed([run, "loss=fitnet"]).losses["fitnet"].regressor == "conv"
    assert composer.typed([run, "loss=wttm_crd"]).losses["crd"].init == "uniform"
    nkd = composer.typed([run, "loss=nkd"]).losses["nkd"]
    assert (nkd.gamma, nkd.temperature) == (3.5, 3)
    assert composer.typed(["loss=fitnet"]).losses["fitnet"].regressor == "pool"


def test_the_recipe_of_transformers_is_whole(composer):
    """yzd-v/cls_KD, configs/distillers/imagenet/deit-s3_distill_deit-t_img.py, and what it stands on in mmcls."""
    run = "experiment=ttm/imagenet_deit3_small_deit_tiny"
    config = composer.typed([run, "loss=kd"])
    assert [(term.weight, getattr(term, "temperature", None)) for term in config.losses.values()] == [
        (0.5, None),
        (0.5, 1),
    ]
    assert (composer.typed([run, "loss=nkd"]).losses["nkd"].gamma, config.losses["ce"].label_smoothing) == (1, 0.1)
    assert {composer.typed([run, f"loss={loss}"]).losses["ce"].label_smoothing for loss in ("ce", "wttm", "nkd")} == {
        0.1
    }
    schedule, clock = config.schedule, config.schedule.clock(1281167)
    assert (clock.steps_per_epoch, schedule.clip_norm, schedule.weight_decay_on) == (1252, 5, "timm")
    rate = LearningRate(schedule, clock).factor
    whole = [0.505 + 0.495 * math.cos(math.pi * step / clock.total_steps) for step in range(clock.total_steps)]
    first = 20 * 1252
    for step in (0, 1, first - 1, first, 100_000, clock.total_steps - 1):  # the cosine runs beside the warm-up
        warm = 1 - (1 - min(step / first, 1)) * (1 - 1e-3)
        assert rate(step) == pytest.approx(whole[step] * warm)
