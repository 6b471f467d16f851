"""The only place that puts a run together: to train it, to check it before that, to open it again when it is done."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kdrun.config.job import Job
from kdrun.config.model import ModelConfig
from kdrun.config.run import ExecutionConfig, RunConfig
from kdrun.config.schedule import Clock
from kdrun.core.device import compile_networks, use_machine
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.seeding import subseed
from kdrun.data.arrays import Arrays
from kdrun.data.load import content_of, load_dataset
from kdrun.data.loader import Loader, make_loader
from kdrun.data.residency import place
from kdrun.data.splits import Split, make_split
from kdrun.data.views.center import Center
from kdrun.data.views.erase import NOTHING, Erase
from kdrun.data.views.recipes import Crop, CtaView, FileCrop, Strong, Weak
from kdrun.data.views.stored import StoredViews
from kdrun.data.views.view import Recipe, Source, View
from kdrun.methods.method import Method
from kdrun.methods.pool import Pool
from kdrun.methods.step import Setup
from kdrun.models.factory import for_channels
from kdrun.models.network import Network, outline
from kdrun.runs.finished import FinishedRun
from kdrun.runs.place import content_in
from kdrun.teachers.cache import keep, stored_views
from kdrun.teachers.kind import make_teacher, untrained_teacher
from kdrun.teachers.teacher import Teacher
from kdrun.training.evaluator import Evaluator, Logits
from kdrun.training.teacher_logits import TeacherLogits


class Assembly:
    """The parts of one run, each made when it is first asked for and then kept.

    A part that is set before anybody asks for it is taken in place of its own: a benchmark's teacher, say.

    Args:
        device: the training device.
        required: role -> directory of the finished run.
    """

    _setup_class: ClassVar[type[Setup]] = Setup

    def __init__(self, job: Job, device: torch.device, required: Mapping[str, Path] | None = None) -> None:
        self.job = job
        self.device = device
        self.required = dict(required or {})

    @classmethod
    def of(
        cls, run: Job | RunConfig, device: torch.device | None = None, required: Mapping[str, Path] | None = None
    ) -> "Assembly":
        """A run that is to be trained.

        Args:
            device: None: that of `execution`, whose number of threads torch then takes.
        """
        job = Job.of(run)
        execution = job.config.execution
        return cls(job, use_machine(execution.device, execution.threads) if device is None else device, required)

    @classmethod
    def outline(cls, run: Job | RunConfig) -> "Assembly":
        """A run on the meta device: packed images may be black, networks have no memory and nothing is loaded."""
        return _Outline(Job.of(run), torch.device("meta"))

    @classmethod
    def restored(cls, run: FinishedRun, execution: ExecutionConfig | None = None) -> "Assembly":
        """A finished run opened again. What asks for a part raises KdrunError where data, plugins or weights are gone.

        Args:
            execution: on which device, with how many threads and so on; as it was trained where this is None.
        """
        return _Restored(run, execution)

    # ----------------------------------------------------------------------------------------------------- data

    @cached_property
    def arrays(self) -> Arrays:
        return load_dataset(self.job.config.dataset, self.job.outputs)

    @cached_property
    def split(self) -> Split:
        """Which images are labeled, unlabeled and for validation."""
        arrays = self.arrays
        return make_split(
            self.job.config, arrays.train_labels, arrays.num_classes, len(arrays.test_labels), arrays.val, arrays.folds
        ).fewer(self.job.config.debug)

    @cached_property
    def config(self) -> RunConfig:
        """With the batch size that the split allows, see `schedule.repeat_labeled`."""
        config = self.job.config
        schedule = config.schedule
        if schedule.repeat_labeled or len(self.split.labeled) >= schedule.batch_size:
            return config
        return config.replace(schedule=schedule.replace(batch_size=len(self.split.labeled)))

    @cached_property
    def images(self) -> tuple[Source, Source]:
        """Training and test images, where they are kept."""
        config = self.config
        return place(self.arrays, self.device, config.dataset.resident, config.execution.workers)

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64 on the CPU, of the train array, also those hidden from the run; -1 where nobody knows."""
        return torch.from_numpy(self.arrays.train_labels)

    # ---------------------------------------------------------------------------------------------------- views

    @cached_property
    def center(self) -> Center | None:
        """What networks see of an image in evaluation; None: all of it."""
        return Center.of(self.config.views, self._image_size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what networks see."""
        return self._image_size if self.center is None else (self.center.size, self.center.size)

    @property
    def _image_size(self) -> tuple[int, int]:
        shape = self.arrays.train_images.shape
        return shape[1], shape[2]

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The views that a method may ask for."""
        config, size = self.config, self._image_size
        weak: Weak | Crop = Weak.of(config.views.weak, size, config.dataset.mirror)
        if config.views.weak.scale is not None:
            weak = (Crop if self.arrays.files is None else FileCrop).of(config.views, size, config.dataset.mirror)
        strong = config.views.strong
        if strong.learns:
            views = {name: CtaView.of(strong, weak, self.size, name == "probe") for name in ("strong", "probe")}
            return {"weak": weak, **views}
        erase = Erase(strong.erase, self.factory.mean, self.factory.std) if strong.erase else NOTHING
        return {"weak": weak, "strong": Strong.of(strong, weak, self.size, erase)}

    @cached_property
    def stored(self) -> StoredViews | None:
        """The views whose logits the teacher keeps; None: it is asked anew each time."""
        return stored_views(self.config, self.recipes["weak"], len(self.arrays.train_images))

    # ------------------------------------------------------------------------------------------------- networks

    @cached_property
    def factory(self) -> Setup:
        """`setup` without its teacher. Pixels are normalised by the dataset's keys, else the recipe of views."""
        config, arrays = self.config, self.arrays
        in_chans = arrays.train_images.shape[-1]
        mean, std = arrays.mean, arrays.std  # the dataset's own, or what `dataset.mean` and `dataset.std` give
        if config.views.mean is not None and config.dataset.mean is None:
            mean = tuple(for_channels(config.views.mean, in_chans, "views.mean"))
        if config.views.std is not None and config.dataset.std is None:
            std = tuple(for_channels(config.views.std, in_chans, "views.std"))
        names = tuple(name.replace("_", " ") for name in arrays.class_names) if arrays.named else ()
        target = np.full(len(arrays.train_labels), -1, dtype=np.int64)  # -1 where the run may not see the label
        target[self.split.labeled] = arrays.train_labels[self.split.labeled]
        return self._setup_class(
            arrays.num_classes, in_chans, mean, std, names,
            train_target=torch.from_numpy(target), num_unlabeled=len(self.split.unlabeled),
        )  # fmt: skip

    @cached_property
    def setup(self) -> Setup:
        """What networks and terms are built from."""
        return replace(self.factory, teacher=self.teacher)

    @cached_property
    def teacher(self) -> Teacher | None:
        frozen = make_teacher(self.config.teacher, self.factory, self.required, outputs=self.job.outputs)
        if frozen is None:
            return None
        return Teacher(to_device(frozen, self.config, self.device), self.config.teacher.precision)

    @cached_property
    def method(self) -> Method[Any]:
        """On the training device, its heads as their warm-up left them, its networks compiled where that is asked."""
        config = self.config
        method: Method[Any] = to_device(config.method_class(config, self.setup), config, self.device)
        self._load_head_warmups(method)
        if config.schedule.compile is not None:
            frozen = [] if self.teacher is None else [self.teacher.network]
            compile_networks([*method.networks().values(), *frozen], config.schedule.compile)
        return method

    def _load_head_warmups(self, method: Method[Any]) -> None:
        for name, model in zip(method.networks(), self.config.students, strict=False):
            if model.head_warmup is None:
                continue
            role = name.replace("student", "head_warmup")
            if role not in self.required:
                raise ConfigError(
                    f"method={self.config.method.name}: its `requires` leaves out the {role} of a student"
                )
            method.networks()[name].load(self.required[role] / "student.safetensors")

    def predict(self, view: View) -> dict[str, Tensor]:
        """What is evaluated, and `teacher` where the run has one: name -> logits (B, C)."""
        return self.method.predict(view) | ({} if self.teacher is None else self.teacher.predict(view))

    # ------------------------------------------------------------------------------------ training and evaluation

    def pool(self, warn: Callable[[str], None]) -> Pool:
        """The unlabeled images, for what a method makes of them before training.

        Args:
            warn: says a line in the log and keeps it in the record.
        """
        index, labels, execution = torch.from_numpy(self.split.unlabeled), self.labels, self.config.execution

        def judge(chosen: Tensor, label: Tensor) -> dict[str, Any]:
            truth = labels[chosen]
            known = truth >= 0
            precision = (truth == label)[known].float().mean().item() if known.any() else None
            return {"coverage": len(chosen) / len(index), "precision": precision}

        return Pool(
            self.images[0], index, self.arrays.num_classes, execution.eval_batch_size, self.config.schedule.precision,
            self.job.outputs, judge, warn, self.device, self.center,
        )  # fmt: skip

    def keep_logits(self) -> dict[str, Any] | None:
        """Have the teacher's logits of stored views computed, or read; figures for the record, None: none are kept."""
        images, teacher, stored, config = self.images[0], self.teacher, self.stored, self.config
        if stored is None or teacher is None or not isinstance(images, Tensor):
            return None
        streams = {"labeled": self.split.labeled, "unlabeled": self.split.unlabeled}
        shown = np.unique(np.concatenate([streams[name] for name in config.needs.streams]))
        teacher.kept, figures = keep(
            teacher.network, stored, images, torch.from_numpy(shown), self.arrays.num_classes, self.device,
            config.execution.eval_batch_size, config.teacher.precision or config.schedule.precision, self.job.outputs,
        )  # fmt: skip
        return figures

    @cached_property
    def clock(self) -> Clock:
        return self.config.clock(len(self.split.labeled))

    @property
    def batch_sizes(self) -> list[dict[str, int]]:
        """Images of each stream in a step: as in most of them, then as in a smaller one at the end of a pass."""
        usual: dict[str, int] = self.config.method_class.batch_sizes(self.config)
        if "labeled" not in usual:
            return [usual]
        labeled = self.config.schedule.labeled_sizes(len(self.split.labeled), usual["labeled"])
        return [{**usual, "labeled": size} for size in labeled]

    @cached_property
    def stream_seed(self) -> int:
        """Of the order and the views of the images."""
        init, seed = self.config.needs.init, self.config.seed
        return subseed(seed, "streams", init) if init else seed

    @cached_property
    def loader(self) -> Loader:
        """The streams that the method declares; the caller closes it."""
        config = self.config
        return make_loader(
            config.needs.streams, self.arrays, self.split, self.images[0], config.method_class.batch_sizes(config),
            self.recipes, self.stream_seed, self.clock.total_steps, config.views.mix, self.device, self.size,
            self.stored, config.schedule.last_batch == "small", config.views.labeled, config.debug.repeat_batch,
        )  # fmt: skip

    @cached_property
    def evaluator(self) -> Evaluator:
        config, device = self.config, self.device
        (train, test), val = self.images, torch.from_numpy(self.split.val)
        everything, target = config.debug.fewer(torch.arange(len(test))), torch.from_numpy(self.arrays.test_labels)
        splits = {
            "val": (train, val.to(device), self.labels[val].to(device)),
            "test": (test, everything.contiguous().to(device), target[everything].to(device)),
        }
        return Evaluator(
            splits, **self.evaluation, compiled=config.schedule.compile is not None, named=self.named("val", "test")
        )

    def named(self, *splits: str) -> dict[str, str]:
        """What names the images of splits where they are many, with the array that positions are in."""
        arrays = self.arrays
        if arrays.packed is not None:
            told = f"{arrays.packed} {len(arrays.train_images)}"
            return {split: f"{told} {split}" for split in splits}
        content = None if arrays.files is None else content_of(self.config.dataset, self.job.outputs)
        if content is None or arrays.files is None:
            return {}
        return {split: arrays.files[split == "test"].named(f"{content} {split}") for split in splits}

    @cached_property
    def teacher_logits(self) -> Callable[[Evaluator], tuple[Logits, dict[str, Any] | None]]:
        """The teacher's logits of an evaluator's images and figures for the record, see `TeacherLogits.of`."""
        teacher, config = self.teacher, self.config
        if teacher is None:
            return lambda _: ({}, None)
        if not config.execution.keep_teacher_evaluation:
            return lambda evaluator: (evaluator.logits(teacher.predict, "the teacher"), None)
        return TeacherLogits(teacher, self.device, config.schedule.channels_last, self.job.outputs).of

    def logits(self, evaluator: Evaluator) -> Logits:
        """Of all that is evaluated, the teacher among it; see `predict`."""
        if self.teacher is None or not self.config.execution.keep_teacher_evaluation:
            return evaluator.logits(self.predict)
        return {**evaluator.logits(self.method.predict), **self.teacher_logits(evaluator)[0]}

    @property
    def evaluation(self) -> dict[str, Any]:
        """What an `Evaluator` of any images has from the run."""
        config = self.config
        return {
            "batch_size": config.execution.eval_batch_size,
            "precision": config.schedule.precision,
            "center": self.center,
        }


class _OutlineSetup(Setup):
    """As `Setup`, of networks without memory; the run and that of its teacher share those that they have in common."""

    def network(self, model: ModelConfig, seed: int, role: str = "") -> Network:
        return outline(self.spec_of(model))


class _Outline(Assembly):
    """Shapes without memory."""

    _setup_class = _OutlineSetup

    @cached_property
    def arrays(self) -> Arrays:
        return load_dataset(self.job.config.dataset, self.job.outputs, pixels=False)

    @cached_property
    def teacher(self) -> Teacher | None:
        if not self.config.teacher.kind().present:
            return None
        with torch.device("meta"):
            return Teacher(untrained_teacher(self.config.teacher, self.factory))

    @cached_property
    def method(self) -> Method[Any]:
        bare = self.config.replace(students=[model.replace(pretrained=False) for model in self.config.students])
        setup = self.setup
        with torch.device("meta"):
            method: Method[Any] = bare.method_class(bare, setup)
        return method


class _Restored(Assembly):
    """A run that is done, its networks as they were saved."""

    def __init__(self, run: FinishedRun, execution: ExecutionConfig | None) -> None:
        config = run.config
        if execution is not None:
            config = config.replace(execution=execution.replace(outputs=str(run.outputs)))
        machine = config.execution
        roles = {role: run.required(role) for role in run.record["requires"] if role.startswith("teacher")}
        super().__init__(Job(config), use_machine(machine.device, machine.threads), roles)
        self.run = run

    @cached_property
    def arrays(self) -> Arrays:
        """Raises KdrunError where the data are others by now."""
        theirs, dataset = content_in(self.run.record), self.job.config.dataset
        if theirs is not None and content_of(dataset, self.job.outputs) not in (None, theirs):
            raise KdrunError(
                f"{self.run.directory}: was trained on other data than lie there now (dataset={dataset.name})"
            )
        return load_dataset(dataset, self.job.outputs)

    @cached_property
    def split(self) -> Split:
        split, trained_on = super().split, (self.run.record.get("split") or {}).get("hash")
        if split.hash != trained_on:
            raise KdrunError(f"{self.run.directory}: was trained on split {trained_on}, not on {split.hash}")
        return split

    @cached_property
    def method(self) -> Method[Any]:
        method: Method[Any] = to_device(self.run.method(self.setup), self.config, self.device)
        return method.eval()


def to_device(module: Any, config: RunConfig, device: torch.device) -> Any:
    return module.to(
        device, memory_format=torch.channels_last if config.schedule.channels_last else torch.preserve_format
    )
