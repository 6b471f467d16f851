"""Mixup distillation's experiments: the authors' recipe typed here a second time, and what shares a run with what."""

import pytest
import yaml

from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.results.papers import read_paper
from kdrun.training.rates import LearningRate

EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment" / "mixup_kd").glob("*.yaml"))
CIFAR = "experiment=mixup_kd/cifar100"


@pytest.fixture
def file_teacher(tmp_path):
    path = tmp_path / "weights.th"
    path.write_bytes(b"weights")
    return f"teacher.path={path}"


def table(name):
    return yaml.safe_load((CONF_DIR / "table" / f"{name}.yaml").read_text())


def required(config):
    return config.method_class.requires(config)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(composer, tmp_path, name):
    path = [f"dataset.path={tmp_path}"] if name == "imagenet" else []
    config = composer.typed([f"experiment=mixup_kd/{name}", *path])
    assert (config.method.name, config.views.mix.kind) == ("mixup_distill", "mixup")
    assert (config.views.mix.alpha, config.views.mix.per, config.views.mix.share) == (1, "sample", 1)
    if name != "cifar10_short":
        weights = {label: loss.weight for label, loss in config.losses.items()}
        assert weights == ({"ce": 0.2, "kd": 0.8} if name == "cifar100_scratch" else {"kd": 1})
        assert config.losses["kd"].temperature == 2
    plain = composer.typed([f"experiment=mixup_kd/{name}", *path, "method=distill"])
    assert plain.views.mix.kind == "none"
    assert plain.replace(method=config.method, views=config.views) == config


def test_ce_and_kd_of_the_short_task_are_the_runs_of_the_other_table(composer, file_teacher):
    spec = table("mixup_kd_cifar10_short")
    [column] = spec["columns"].values()
    for row in ("CE", "KD"):
        mine = composer.typed([*column, *spec["rows"][row], file_teacher, "seed=1"])
        loss = f"loss={row.lower()}"
        assert run_key(mine) == run_key(composer.typed(["experiment=ttm/cifar10_short", loss, file_teacher, "seed=1"]))
    kd, mixed = (composer.typed([*column, *spec["rows"][row], file_teacher]) for row in ("KD", "mixup KD"))
    assert (mixed.losses, mixed.schedule, mixed.students, mixed.dataset) == (
        kd.losses, kd.schedule, kd.students, kd.dataset
    )  # fmt: skip
    keys = {run_key(composer.typed([*column, *row, file_teacher])) for row in spec["rows"].values()}
    assert len(keys) == len(spec["rows"])


def test_the_authors_learning_rates(composer):
    schedule = composer.typed([CIFAR]).schedule
    assert (schedule.epochs, schedule.batch_size, schedule.optimizer) == (500, 200, "adam")
    clock = schedule.clock(50_000)
    rate = LearningRate(schedule, clock)
    for epoch, lr in (
        (0, 1e-5),
        (5, 2.55e-4),
        (10, 5e-4),
        (30, 3e-4),
        (50, 1e-4),
        (125, 7.5e-5),
        (200, 5e-5),
        (350, 3e-5),
    ):
        assert schedule.lr * rate.factor(epoch * 250) == pytest.approx(lr), epoch
    assert schedule.lr * rate.factor(500 * 250 - 1) == pytest.approx(1e-5, rel=1e-3)


def test_student_teacher_and_warm_up(composer):
    config = composer.typed([CIFAR])
    [student] = config.students
    assert (student.name, student.head, student.size, student.pretrained) == ("resnet50.tv_in1k", "mlp", 224, True)
    runs = required(config)
    assert set(runs) == {"head_warmup", "teacher"}
    warmup, teacher = runs["head_warmup"], runs["teacher"]
    assert (warmup.method.name, warmup.students[0].trainable, warmup.views.mix.kind) == ("supervised", "head", "none")
    schedule = warmup.schedule
    assert (schedule.epochs, schedule.lr, schedule.optimizer, schedule.decay.name) == (10, 1e-3, "adam", "constant")
    assert (schedule.batch_size, warmup.seed, warmup.losses.keys()) == (200, 0, {"ce"})
    assert teacher.students[0].args == {"drop_rate": 0.3}
    schedule = teacher.schedule
    assert (schedule.optimizer, schedule.lr, schedule.decay.gamma, schedule.decay.min_factor) == ("sgd", 1e-4, 0.9, 0.1)
    assert teacher.views.mix.kind == "none"
    assert run_key(teacher) == run_key(
        composer.typed(
            [
                "method=supervised", "dataset=cifar100", "dataset.val_fraction=0.1", "schedule=mixup_kd_teacher",
                "student=timm", f"student.name={teacher.students[0].name}", "+student.args.drop_rate=0.3",
                "student.pretrained=true", "student.size=224", "views.weak={pad: 1, pad_mode: reflect}",
            ]
        )
    )  # fmt: skip


def test_the_warm_up_is_shared_by_temperatures_teachers_and_methods(composer):
    def warmup(*overrides):
        return run_key(required(composer.typed([CIFAR, *overrides]))["head_warmup"])

    shared = warmup()
    for other in (
        ["loss.kd.temperature=8"], ["teacher.model.name=convnext_tiny.fb_in1k"], ["method=distill", "loss=kd"],
        ["schedule.epochs=10"], ["schedule.lr=0.1"], ["views.mix.alpha=0.2"], ["student.lr_scale=2"],
    ):  # fmt: skip
        assert warmup(*other) == shared, other
    for other in (
        ["seed=1"], ["student.name=mobilenetv2_100.ra_in1k"], ["student.head_warmup.epochs=5"], ["student.head=linear"],
        ["dataset.num_labels=1000"], ["schedule.batch_size=100"],
    ):  # fmt: skip
        assert warmup(*other) != shared, other


def test_the_baseline_on_labels(composer):
    config = composer.typed([CIFAR, *table("mixup_kd_cifar100")["rows"]["CE"]])
    assert (config.method.name, required(config)) == ("supervised", {})
    schedule = config.schedule
    assert (schedule.epochs, schedule.batch_size, schedule.lr, schedule.decay.gamma) == (200, 250, 1e-3, 0.9)
    assert schedule.lr * schedule.decay.min_factor == pytest.approx(1e-6)


@pytest.mark.parametrize("name", ["mixup_kd_cifar100", "mixup_kd_cifar10"])
def test_weights_of_all_networks_are_published(composer, name):
    import timm

    published, spec = timm.list_pretrained(), table(name)
    rows, columns = list(spec["rows"].values()), list(spec["columns"].values())
    for column, row in (*((column, rows[1]) for column in columns), (columns[0], rows[-1])):
        config = composer.typed([*column, *row])
        for model in (*config.students, *config.teacher.models):
            assert model.name in published


def test_temperatures(composer):
    spec = table("mixup_kd_temperature")
    assert spec["rows"] == table("mixup_kd_temperature_cifar100")["rows"]
    kept = [composer.typed(["experiment=mixup_kd/digits", *row]).losses["kd"] for row in spec["rows"].values()]
    assert [(kd.temperature, kd.standardize) for kd in kept[:5]] == [(t, "none") for t in (1, 2, 4, 8, 20)]
    assert (kept[5].temperature, kept[5].standardize) == (1, "std")


SCRATCH = {
    "mixup": ([], "mixup_distill", {"ce": {"weight": 0.2}, "kd": {"weight": 0.8, "temperature": 2}}),
    "LSKD": (
        ["method=distill", "loss=kd_zscore", "loss.kd.standardize=std"], "distill",
        {"ce": {"weight": 0.1}, "kd": {"weight": 9, "temperature": 2, "standardize": "std"}},
    ),
    "RLD": (
        ["method=distill", "loss=rld"], "distill",
        {"ce": {"weight": 1},
         "rld": {"weight": 1, "alpha": 1, "beta": 4, "temperature": 2, "alpha_temperature": None, "warmup": 0}},
    ),
}  # fmt: skip


def test_the_later_benchmark_from_scratch(composer):
    for overrides, method, losses in SCRATCH.values():
        config = composer.typed(["experiment=mixup_kd/cifar100_scratch", *overrides])
        assert config.method.name == method
        found = {label: {key: getattr(config.losses[label], key) for key in wanted} for label, wanted in losses.items()}
        assert (set(config.losses), found) == (set(losses), losses)
        [student] = config.students
        assert (student.name, student.head, student.pretrained, student.size) == ("resnet50", "mlp", False, 224)
        assert set(required(config)) == {"teacher"}  # no warm-up of the head alone
        schedule = config.schedule
        assert (schedule.epochs, schedule.batch_size, schedule.optimizer) == (300, 200, "adamw")
        assert (schedule.weight_decay, schedule.weight_decay_on) == (1e-4, "all")
    rate = LearningRate(schedule, schedule.clock(50_000))
    for epoch, lr in ((0, 0), (5, 1.5e-4), (10, 3e-4), (155, (3e-4 + 1e-5) / 2)):
        assert schedule.lr * rate.factor(epoch * 250) == pytest.approx(lr), epoch
    assert schedule.lr * rate.factor(300 * 250 - 1) == pytest.approx(1e-5, rel=1e-3)
    [teacher] = {run_key(required(composer.typed([e]))["teacher"]) for e in (CIFAR, f"{CIFAR}_scratch")}
    assert teacher  # one teacher for both


# --------------------------------------------------------------------------------------------- the paper's numbers

TEACHERS = ("ConvNeXt-Large", "ViT-B/16", "ResNet152V2", "ConvNeXt-Tiny")


def test_the_paper_s_cells_are_all_there():
    paper = read_paper("mixup_kd")
    cells = {(c.table, c.row, c.column, c.metric): c for c in paper.cells if c.table != "logs"}
    metrics = ("top1", "confidence", "ece", "confidence_gap")
    expected = {
        ("cifar100", row, f"cifar100 {t}", m) for row in ("Teacher", "mixup KD") for t in TEACHERS for m in metrics
    }
    expected |= {("cifar10", "Teacher", f"cifar10 {t}", m) for t in TEACHERS for m in metrics[:3]}
    assert set(cells) == expected
    assert {c.tag for c in paper.cells} == {"code"}
    for (_, row, column, metric), cell in cells.items():
        assert cell.protocol == ("unknown" if row == "Teacher" else "best")
        if metric == "confidence_gap":
            gap = cells["cifar100", row, column, "confidence"].mean - cells["cifar100", row, column, "top1"].mean
            assert cell.mean == pytest.approx(gap, abs=0.011), (row, column)  # both were rounded
    for name in ("cifar10", "cifar100"):
        assert set(table(f"mixup_kd_{name}")["columns"]) == {f"{name} {t}" for t in TEACHERS}


@pytest.mark.parametrize(
    ("column", "teacher", "student"),
    [
        ("cifar100 ConvNeXt-Large", 92.17, 87.85),
        ("cifar100 ViT-B/16", 91.50, 87.44),
        ("cifar100 ResNet152V2", 82.57, 85.20),
        ("cifar100 ConvNeXt-Tiny", 81.96, 81.86),
    ],
)
def test_accuracies(column, teacher, student):
    paper = read_paper("mixup_kd")
    assert paper.teacher(column) == teacher
    [found] = [c.mean for c in paper.cells if (c.row, c.column, c.metric) == ("mixup KD", column, "top1")]
    assert found == student


# ------------------------------------------------------------------------------------------------- a teacher's recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.schedule.lrr=1"], "lrr"),
        (["teacher.epochs=3"], "teacher.schedule has a length of its own"),
        (
            ["teacher.source=timm"],
            r"teacher\.schedule: not for source=timm; source=distilled and tip_adapter and train have it",
        ),
        (["teacher.schedule.decay.name=never"], "teacher.schedule.decay.name: "),
        (["teacher.schedule.decay.gamma=2"], "teacher.schedule.decay.gamma: must be less than 1"),
        (["teacher.schedule.lr=0"], "teacher.schedule.lr: must be greater than 0"),
    ],
)
def test_mistakes_in_it(composer, overrides, message):
    with pytest.raises(ConfigError, match=message):
        composer.typed([CIFAR, *overrides])
