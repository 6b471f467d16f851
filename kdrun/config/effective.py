"""A configuration without what cannot have an effect."""

from functools import lru_cache
from pathlib import Path

from kdrun.config.dataset import FilesConfig
from kdrun.config.model import with_entry
from kdrun.config.rules import contradictions
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ConstantConfig, RampConfig, ScheduleConfig
from kdrun.config.teacher import CacheConfig, TeacherConfig
from kdrun.config.views import MixConfig, StrongConfig, WeakConfig
from kdrun.core.errors import ConfigError
from kdrun.core.files import read_npz
from kdrun.core.hashing import file_hash


def effective(config: RunConfig) -> RunConfig:
    """Drop what cannot have an effect, and refuse combinations that cannot run."""
    config = _with_one_batch(config.method_class.settled(config))
    losses = {label: term for label, term in sorted(config.losses.items()) if term.weight > 0}
    needs = config.method_class.needs(config)
    if not losses and needs.trains and needs.terms:
        raise ConfigError("loss: no term with a weight above 0; give one of them a weight")
    config = config.replace(losses=losses)
    if needs.students == (0, 0):
        config = config.replace(students=[])
    if not needs.trains:
        config = _without_training(config)
    if errors := contradictions(config):
        raise ConfigError(*errors)
    config = config.replace(
        teacher=config.teacher.kind().effective(config) if config.needs_teacher else TeacherConfig(),
        views=config.views.replace(mix=config.views.mix.effective()),
        students=[with_entry(model) for model in config.students],
    )
    present = {model.name for model in (*config.students, *config.teacher.models)}
    lr_for = {name: lr for name, lr in config.schedule.lr_for.items() if name in present}
    config = config.replace(schedule=config.schedule.replace(lr_for=lr_for))
    weak = config.views.weak
    unused = ("ratio", "interpolation") if weak.scale is None else ("pad", "pad_mode")
    kept = {name: value for name, value in weak if name not in unused}
    config = config.replace(views=config.views.replace(weak=WeakConfig(**kept)))
    if not config.dataset.mirror:
        config = config.replace(views=config.views.replace(weak=config.views.weak.replace(flip=True)))  # no effect
    if "weak" not in needs.streams.get("labeled", ()):
        config = config.replace(views=config.views.replace(labeled="weak"))  # nobody sees any
    if config.views.labeled == "weak" and not any("strong" in views for views in needs.streams.values()):
        config = config.replace(views=config.views.replace(strong=StrongConfig()))
    config = config.replace(views=config.views.replace(strong=config.views.strong.effective()))
    dataset = config.dataset
    if "unlabeled" not in needs.streams:
        dataset = dataset.replace(unlabeled=None)
    if dataset.split_file is not None and dataset.num_labels is None:
        dataset = dataset.replace(num_labels=_num_listed(dataset.split_file))
    named = any(model.name == "open_clip" for model in config.students)  # its text encoder may be asked
    if not (named or config.teacher.reads_names or needs.class_names):
        dataset = dataset.replace(class_names=None)
    listed = dataset.split_file is not None or getattr(dataset, "fold", None) is not None
    if (dataset.num_labels is None or listed) and dataset.split_seed is not None:
        dataset = dataset.replace(split_seed=None)  # nothing is drawn
    if isinstance(dataset, FilesConfig):
        dataset = dataset.replace(size=dataset.pixels)
        if dataset.val == "official":
            dataset = dataset.replace(
                **{n: type(dataset).model_fields[n].default for n in ("val_fraction", "val_seed")}
            )
    return config.replace(dataset=dataset)


def _with_one_batch(config: RunConfig) -> RunConfig:
    """Without what would hide whether the losses of a batch that is repeated fall."""
    if not config.debug.repeat_batch:
        return config
    schedule = config.schedule.replace(
        decay=ConstantConfig(name="constant"), warmup_steps=None, warmup_epochs=None, weight_decay=0.0, ema_decay=None
    )
    return config.replace(schedule=schedule)


def _without_training(config: RunConfig) -> RunConfig:
    """Of a run that evaluates its teacher alone: the same for all seeds, labels and recipes that the teacher shares."""
    dataset, schedule, seed, kinds = config.dataset, config.schedule, config.seed, config.teacher.kinds
    if not any(kind.draws_labels for kind in kinds):
        seed = 0
        if dataset.split_file is None:
            dataset = dataset.replace(num_labels=None, split_seed=None)
    if not any(kind.follows_schedule for kind in kinds):
        schedule = ScheduleConfig(steps=1, precision=schedule.precision, channels_last=schedule.channels_last)
    return config.replace(
        losses={}, ramps={}, seed=seed, dataset=dataset, schedule=schedule,
        views=config.views.replace(mix=MixConfig()),
        teacher=config.teacher.replace(cache=CacheConfig(), precision=None),
    )  # fmt: skip


def ramps_in(config: RunConfig) -> dict[str, RampConfig]:
    """The ramps whose weight `config` has; of a run that is made from another one."""
    return {name: ramp for name, ramp in config.ramps.items() if ramp.key in config.weights}


def _num_listed(split_file: str) -> int | None:
    return _num_in(split_file, file_hash(split_file, "dataset.split_file"))


@lru_cache(maxsize=256)
def _num_in(split_file: str, _content: str) -> int | None:
    labeled = read_npz(Path(split_file), "dataset.split_file").get("labeled")
    return None if labeled is None else labeled.size or None  # what is wrong with it is said when the split is made
