"""The dual-student paper: what is known of it, typed here a second time, against what is composed and what is filed."""

import pytest
import torch

from kdrun.core.paths import CONF_DIR
from kdrun.results.papers import read_paper
from kdrun.training.optimizer import parameter_groups
from tests.contract.test_methods import make

EXPERIMENTS = {path.stem for path in (CONF_DIR / "experiment" / "dual_student").glob("*.yaml")}
TRIO = ["resnet18", "mobilenetv2_100"]


def typed(composer, name, path, *overrides):
    images = [f"dataset.root={path}"] if name.startswith("imagenet") else []
    return composer.typed([f"experiment=dual_student/{name}", *images, *overrides])


ONE = {"open_digits", "open_cifar10"}  # one student, to see its weights by uncertainty alone


@pytest.mark.parametrize("name", sorted(ONE))
def test_one_student_with_weights_by_uncertainty(composer, tmp_path, name):
    config = typed(composer, name, tmp_path)
    assert (config.method.name, len(config.students)) == ("uncertainty_distill", 1)
    assert (config.method.uncertainty.name, config.losses["kd"].temperature) == ("entropy", 4)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS - ONE))
def test_the_paper_s_coefficients_are_in_force(composer, tmp_path, name):
    config = typed(composer, name, tmp_path)
    method = config.method
    assert (config.losses["ce"].weight, config.losses["kd"].weight, method.peer_weight) == (0.4, 0.4, 0.2)
    assert config.losses["kd"].temperature == method.peer_temperature == 4
    assert method.name == ("peer_fixmatch" if name == "digits_unlabeled" else "peer_distill")
    assert (method.uncertainty.name, method.normalize_weights) == ("entropy", False)
    assert config.losses.keys() == {"ce", "kd"}


@pytest.mark.parametrize(
    ("name", "teacher", "students", "num_classes"),
    [
        ("imagenet100", "resnet50", TRIO, 100),
        ("imagenet100_shufflenet", "resnet50", ["resnet18", "shufflenetv2"], 100),
        ("imagenet100_similar", "resnet50", ["resnet18", "resnet34"], 100),
        ("imagenet100_three", "resnet50", [*TRIO, "ghostnet_100"], 100),
        ("imagenet1k", "resnet50.tv_in1k", TRIO, 0),
        ("food101", "resnet50", TRIO, None),
        ("cifar100", "resnet50_cifar", ["vgg8_cifar", "mobilenetv2_half"], None),
    ],
)
def test_networks_and_classes(composer, tmp_path, name, teacher, students, num_classes):
    config = typed(composer, name, tmp_path)
    assert config.teacher.model.name == teacher
    assert config.teacher.source == ("timm" if name == "imagenet1k" else "train")
    assert [model.name for model in config.students] == students
    assert not any(model.pretrained for model in config.students)
    if num_classes is not None:
        classes = config.dataset.classes
        assert len(classes) == len(set(classes)) == num_classes
        assert all(len(name) == 9 and name.startswith("n") for name in classes)
        assert not classes or {"n02869837", "n01749939", "n02488291", "n02107142"} < set(classes)
    if name != "cifar100":
        schedule = config.schedule
        assert (schedule.epochs, schedule.batch_size, schedule.lr, schedule.weight_decay) == (100, 256, 0.1, 1e-4)
        assert (schedule.decay.name, schedule.nesterov) == ("cosine", True)


@pytest.mark.parametrize(
    ("overrides", "hard", "teacher", "peer"),
    [
        (["loss=ce", "method.peer_weight=0"], 1, None, 0),
        (["loss=kd_30_70", "method.peer_weight=0", "method/uncertainty=none"], 0.3, 0.7, 0),
        (["loss=kd_30_70", "method.peer_weight=0"], 0.3, 0.7, 0),
        ([], 0.4, 0.4, 0.2),
    ],
    ids=["hard only", "KD", "+ uncertainty", "+ peers"],
)
def test_rows_of_the_ablation(composer, tmp_path, overrides, hard, teacher, peer):
    config = typed(composer, "imagenet100", tmp_path, *overrides)
    kd = config.losses.get("kd")
    assert (config.losses["ce"].weight, kd and kd.weight, config.method.peer_weight) == (hard, teacher, peer)


def test_parameters_and_compression():
    """The paper's ratios are those of 1000 classes (25.6M / 11.7M and 25.6M / 3.5M)."""
    import timm

    counts = {}
    for classes in (100, 1000):
        with torch.device("meta"):
            made = [timm.create_model(name, num_classes=classes) for name in ("resnet50", *TRIO)]
        counts[classes] = [sum(p.numel() for p in net.parameters()) for net in made]
    assert counts == {100: [23_712_932, 11_227_812, 2_351_972], 1000: [25_557_032, 11_689_512, 3_504_872]}
    comment = (CONF_DIR / "paper" / "dual_student.yaml").read_text()
    for numbers in counts.values():
        assert all(f"{number:,}" in comment for number in numbers)
    ratios = {n: [round(teacher / own, 2) for own in rest] for n, (teacher, *rest) in counts.items()}
    assert ratios == {100: [2.11, 10.08], 1000: [2.19, 7.29]}


def test_cells():
    cells = {(c.table, c.row, c.column): c.mean for c in read_paper("dual_student").cells}
    assert cells == {
        ("abstract", "dual student", "r18"): 83.84,
        ("abstract", "dual student", "mv2"): 81.46,
        ("abstract", "KD", "r18"): pytest.approx(83.84 - 2.04),
        ("abstract", "KD", "mv2"): pytest.approx(81.46 - 0.92),
        ("ablation", "hard only", "r18"): 78.2,
        ("ablation", "hard only", "mv2"): 76.1,
        ("ablation", "+ uncertainty", "r18"): 82.8,
        ("ablation", "+ uncertainty", "mv2"): 81.0,
        ("ablation", "+ peers", "r18"): 83.8,
        ("ablation", "+ peers", "mv2"): 81.5,
    }
    assert all(cell.tag == "digest" and cell.n is None for cell in read_paper("dual_student").cells)


def test_rates_of_both_students_on_cifar100(composer):
    schedule = composer.typed(["experiment=dual_student/cifar100"]).schedule
    assert (schedule.lr, schedule.lr_for) == (0.05, {"mobilenetv2_half": 0.01})
    _, method, _, _ = make("peer_distill", "+schedule.lr_for.resnet14=0.01")
    rates = {group["net"]: group["base_lr"] for group in parameter_groups(method)}
    assert rates == {"student_1": 0.05, "student_2": 0.01}
