"""Every experiment of conf/ runs: two steps and an evaluation over small files, in the format of its own dataset.

Networks are small ones and lengths are short; everything else is what the YAML says.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from kdrun.config import CONF_DIR, FilesConfig, ModelConfig, RunConfig, TeacherConfig, effective
from kdrun.data.folders import ImageFolder, ImageNetConfig
from kdrun.plan import Composer
from kdrun.runner import check, run
from kdrun.schedule import ScheduleConfig
from tests.unit.test_published import write_image, write_svhn

FOLDER = CONF_DIR / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
NEEDS = {"mixup_kd/imagenet": ["dataset.path=to be given"]}
DATASETS = {"cifar10", "cifar100", "svhn", "food101", "imagenet", "imagenet100", "imagefolder", "digits"}
CLASSES, SIDE, STEPS = 4, 16, 2


def write_cifar(root: Path) -> None:
    """CIFAR-10 and CIFAR-100 with some images of each class."""
    rng = np.random.default_rng(0)

    def content(n, classes, names):
        return {"data": rng.integers(0, 256, (n, 3072), np.uint8), names: [i % classes for i in range(n)]}

    ten, hundred = root / "cifar-10-batches-py", root / "cifar-100-python"
    ten.mkdir(parents=True)
    hundred.mkdir()
    for b in range(1, 6):
        (ten / f"data_batch_{b}").write_bytes(pickle.dumps(content(40, 10, "labels"), protocol=2))
    (ten / "test_batch").write_bytes(pickle.dumps(content(20, 10, "labels"), protocol=2))
    (ten / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(c) for c in range(10)]}, protocol=2))
    for name, n in (("train", 600), ("test", 100)):
        (hundred / name).write_bytes(pickle.dumps(content(n, 100, "fine_labels"), protocol=2))
    (hundred / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}, protocol=2))


def write_files(root: Path) -> None:
    """Food-101 and ImageNet, of some classes."""
    for split, count in (("train", 20), ("test", 2)):
        names = {f"food{c}": [f"food{c}/{split}{i}" for i in range(count)] for c in range(CLASSES)}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))
        for path in (path for paths in names.values() for path in paths):
            write_image(root / "food-101" / "images" / f"{path}.jpg")
    for split, count in (("train", 10), ("val", 2)):
        for c in range(CLASSES):
            for i in range(count):
                write_image(root / "imagenet" / split / f"n0000000{c}" / f"{i}.JPEG")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/ and outputs/: teachers and outer runs are shared, as by the jobs of a sweep."""
    root = tmp_path_factory.mktemp("experiments")
    (root / "data").mkdir()
    write_cifar(root / "data")
    write_svhn(root / "data")
    write_files(root / "data")
    return root


@pytest.fixture(scope="module")
def composer():
    with Composer() as composer:
        yield composer


def small(model: ModelConfig) -> ModelConfig:
    head = None if model.head_warmup is None else model.head_warmup.replace(epochs=0.1)
    return model.replace(
        name="resnet8", args={"width": 4}, pretrained=False, size=8, mean=None, std=None, head_warmup=head
    )


def short(schedule: ScheduleConfig) -> ScheduleConfig:
    return schedule.replace(
        steps=STEPS, epochs=None, batch_size=4, warmup_steps=None, warmup_epochs=None, precision="fp32", compile=None,
        eval_every_steps=STEPS if schedule.evaluates_more_than_once else None, eval_every_epochs=None,
    )  # fmt: skip


def short_teacher(teacher: TeacherConfig) -> TeacherConfig:
    """Published weights and files are not at hand: such a teacher is trained too. And open_clip takes long to import."""
    source = "train" if teacher.source in ("timm", "file", "clip") else teacher.source
    own = teacher.schedule and short(teacher.schedule)
    return teacher.replace(
        source=source, path=None, prompts=None, strip_prefix="", rename={}, steps=None, epochs=None, num_labels=None, schedule=own,
        model=teacher.model and small(teacher.model), members=[short_teacher(member) for member in teacher.members],
    )  # fmt: skip


def shrunk(config: RunConfig, place: Path) -> RunConfig:
    data = config.dataset
    keys = {"root": str(place / "data")} if hasattr(data, "root") else {}
    keys |= {"verify_md5": False} if hasattr(data, "verify_md5") else {}
    classes = 100 if data.name == "cifar100" else 10
    if isinstance(data, FilesConfig):
        classes = CLASSES
        keys |= {"size": SIDE, "pack": data.pack.replace(size=data.pack.size and SIDE)}
    if isinstance(data, ImageNetConfig):
        keys |= {"root": str(place / "data" / "imagenet"), "classes": []}
    if isinstance(data, ImageFolder.Config):
        keys |= {"path": str(place / "data" / "imagenet")}
    method = config.method
    if "unlabeled_ratio" in type(method).model_fields:
        method = method.replace(unlabeled_ratio=1)
    if "outer" in type(method).model_fields and method.outer.model is not None:
        method = method.replace(outer=method.outer.replace(model=small(method.outer.model)))
    views = config.views
    if views.size is not None or views.weak.scale is not None:
        views = views.replace(size=SIDE - 4)
    execution = config.execution.replace(outputs=str(place / "outputs"), device="cpu", threads=1)
    return effective(config.replace(
        dataset=data.replace(num_labels=data.num_labels and classes, **keys), method=method, views=views,
        students=[small(model) for model in config.students], teacher=short_teacher(config.teacher),
        schedule=short(config.schedule), tracker=config.tracker.replace(name="none"), execution=execution,
    ))  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_runs(name, composer, place):
    config = shrunk(composer.typed([f"experiment={name}", *NEEDS.get(name, [])]), place)
    assert config.dataset.name in DATASETS, "write some of its files above"
    check(config)
    record = run(config)
    assert record["status"] == "done", record["error"]
    assert record["steps"] == STEPS
    assert 0 <= record["metrics"][f"test/{record['headline']}/top1"] <= 1
