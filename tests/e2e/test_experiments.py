"""Every experiment of conf/ runs: two steps and an evaluation over small files, in the format of its own dataset.

Networks are small ones and lengths are short; everything else is what the YAML says. A published CLIP is a tiny one in a
folder, with random weights.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from kdrun.config.compose import Composer
from kdrun.config.dataset import FilesConfig
from kdrun.config.effective import effective
from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.teacher import MembersConfig, NetworkConfig, RecipeConfig, TeacherConfig
from kdrun.core.paths import CONF_DIR
from kdrun.data.sets.folders import ImageFolder, ImageNetConfig
from kdrun.teachers.open_clip import OpenClipConfig
from kdrun.teachers.train import TrainConfig
from kdrun.training.check import check
from kdrun.training.runner import run
from tests.unit import test_readers as readers
from tests.unit.test_published import write_image, write_svhn
from tests.unit.test_stl10 import write_stl10

pytestmark = pytest.mark.slow

FOLDER = CONF_DIR / "experiment"
FILES = [path for path in FOLDER.rglob("*.yaml") if path.stem != "base"]
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FILES)
NEEDS = {"mixup_kd/imagenet": ["dataset.path=to be given"]}
FEW_SHOT = ("oxford_pets", "stanford_cars", "flowers102", "fgvc_aircraft", "dtd", "sun397", "ucf101")
DRAWN = {"caltech101": "caltech101/101_ObjectCategories", "eurosat": "eurosat/2750"}
DATASETS = {
    "cifar10",
    "cifar100",
    "svhn",
    "stl10",
    "food101",
    "imagenet",
    "imagenet100",
    "imagefolder",
    "digits",
    *FEW_SHOT,
    *DRAWN,
}
CLASSES, SIDE, STEPS = 4, 16, 2
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
SETS = {"imagenet_sketch": "sketch", "imagenet_r": "imagenet-r", "imagenet_a": "imagenet-a"}  # V2 has 1000 classes


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
    """Food-101, ImageNet and its other test sets, of some classes; the few-shot datasets, of two."""
    for split, count in (("train", 20), ("test", 2)):
        names = {f"food{c}": [f"food{c}/{split}{i}" for i in range(count)] for c in range(CLASSES)}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))
        for path in (path for paths in names.values() for path in paths):
            write_image(root / "food-101" / "images" / f"{path}.jpg")
    for split, count in (("train", 10), ("val", 2)):
        for wnid in WNIDS:
            for i in range(count):
                write_image(root / "imagenet" / split / wnid / f"{i}.JPEG")
    for folder in SETS.values():
        for wnid in WNIDS:
            write_image(root / folder / wnid / "0.JPEG")
    for name in FEW_SHOT:
        getattr(readers, f"write_{name}")(root, count=5)
    for place in DRAWN.values():
        readers.write_drawn(root, place)
    flowers = [
        [f"image_{i + 1:05d}.jpg", i % 2, ("rose", "lily")[i % 2]] for i in range(14)
    ]  # the authors' are of 102 classes
    split = {"train": flowers[:10], "val": flowers[10:12], "test": flowers[12:]}
    (root / "split_zhou_OxfordFlowers.json").write_text(json.dumps(split))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder as open_clip writes it."""
    import open_clip
    import torch

    path, tower = tmp_path_factory.mktemp("clip"), {"layers": 1, "width": 16}
    content = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 8, "patch_size": 4, "head_width": 8, **tower},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "heads": 2, **tower},
    }
    plain = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    torch.manual_seed(0)
    weights = open_clip.CLIP(**content).state_dict()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": content, "preprocess_cfg": plain}))
    save_file({name: value.contiguous() for name, value in weights.items()}, path / "open_clip_model.safetensors")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/ and outputs/: teachers and outer runs are shared, as by the jobs of a sweep."""
    root = tmp_path_factory.mktemp("experiments")
    (root / "data").mkdir()
    write_cifar(root / "data")
    write_svhn(root / "data")
    write_stl10(root / "data")
    write_files(root / "data")
    return root


@pytest.fixture(scope="module")
def composer():
    with Composer() as composer:
        yield composer


def small(model: ModelConfig, clip: Path) -> ModelConfig:
    if model.name == "open_clip":
        return model.replace(args={"model": None}, file=str(clip))
    head = None if model.head_warmup is None else model.head_warmup.replace(epochs=0.1)
    return model.replace(
        name="resnet8", args={"width": 4}, pretrained=False, file=None, new_head=False, size=8, mean=None, std=None,
        head_warmup=head, match="names",
    )  # fmt: skip


def short(schedule: ScheduleConfig) -> ScheduleConfig:
    return schedule.replace(
        steps=STEPS, epochs=None, batch_size=4, warmup_steps=None, warmup_epochs=None, precision="fp32", compile=None,
        eval_every_steps=STEPS if schedule.evaluates_more_than_once else None, eval_every_epochs=None,
    )  # fmt: skip


def short_teacher(teacher: TeacherConfig, clip: Path) -> TeacherConfig:
    """Published weights and files are not at hand: such a teacher is trained too, but a published CLIP is `clip`."""
    if isinstance(teacher, OpenClipConfig):
        return teacher.replace(path=str(clip), model=None, pretrained=None)
    changes: dict[str, Any] = {}
    if isinstance(teacher, MembersConfig):
        changes = {"members": [short_teacher(member, clip) for member in teacher.members]}
    if isinstance(teacher, NetworkConfig):
        changes = {"model": small(teacher.model, clip)}
        if not isinstance(teacher, TrainConfig):
            return TrainConfig(source="train", temperature=teacher.temperature, cache=teacher.cache, **changes)
        changes |= {"num_labels": None}
    if isinstance(teacher, RecipeConfig):
        changes |= {"steps": None, "epochs": None, "schedule": teacher.schedule and short(teacher.schedule)}
    return teacher.replace(**changes)


def shrunk(config: RunConfig, place: Path, clip: Path) -> RunConfig:
    data = config.dataset
    keys = {"root": str(place / "data")} if hasattr(data, "root") else {}
    keys |= {"verify_md5": False} if hasattr(data, "verify_md5") else {}
    classes = 100 if data.name == "cifar100" else 10
    if isinstance(data, FilesConfig):
        classes = 2 if data.name in (*FEW_SHOT, *DRAWN) else CLASSES
        keys |= {"size": SIDE, "pack": data.pack.replace(size=data.pack.size and SIDE)}
    if data.name == "flowers102":
        keys |= {"coop_split": str(place / "data" / "split_zhou_OxfordFlowers.json"), "val": "official"}
    if isinstance(data, ImageNetConfig):
        keys |= {"root": str(place / "data" / "imagenet"), "classes": []}
    if isinstance(data, ImageFolder.Config):
        keys |= {"path": str(place / "data" / "imagenet")}
    method = config.method
    if "unlabeled_ratio" in type(method).model_fields:
        method = method.replace(unlabeled_ratio=1)
    if "outer" in type(method).model_fields and method.outer.model is not None:
        method = method.replace(outer=method.outer.replace(model=small(method.outer.model, clip)))
    views = config.views
    if views.size is not None or views.weak.scale is not None:
        views = views.replace(size=SIDE - 4)
    execution = config.execution.replace(outputs=str(place / "outputs"), device="cpu", threads=1, workers=0)
    evaluate = config.evaluate.replace(sets=[s for s in config.evaluate.sets if s in SETS], root=str(place / "data"))
    return effective(config.replace(
        dataset=data.replace(num_labels=data.num_labels and classes, **keys), method=method, views=views,
        students=[small(model, clip) for model in config.students], teacher=short_teacher(config.teacher, clip),
        schedule=short(config.schedule), tracker=config.tracker.replace(name="none"), execution=execution,
        evaluate=evaluate,
    ))  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_runs(name, composer, place, clip):
    config = shrunk(composer.typed([f"experiment={name}", *NEEDS.get(name, [])]), place, clip)
    assert config.dataset.name in DATASETS, "write some of its files above"
    check(config)
    record = run(config)
    assert record["status"] == "done", record["error"]
    assert record["steps"] == STEPS
    assert 0 <= record["metrics"][f"test/{record['headline']}/top1"] <= 1
