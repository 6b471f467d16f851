"""What only data, networks and the machine can refuse, before anything is written."""

import logging
import re
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from kdrun.config.dataset import DatasetConfig
from kdrun.config.job import Job
from kdrun.config.key import plugins_of, run_key
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.teacher import OwnRunConfig
from kdrun.core.device import device_of, require_compiler
from kdrun.core.errors import ConfigError
from kdrun.core.registry import line_in_plugin
from kdrun.data.load import load_dataset
from kdrun.data.loader import check_streams
from kdrun.methods.step import Setup
from kdrun.models.factory import for_channels
from kdrun.models.network import Network
from kdrun.models.sides import refuse_images
from kdrun.teachers.cache import refuse_features
from kdrun.training.assembly import Assembly
from kdrun.training.distributed import parts_seen, refuse_over_ranks
from kdrun.training.measure import corruptions_of
from kdrun.training.optimizer import make_optimizer
from kdrun.training.rates import LearningRate
from kdrun.training.rehearsal import rehearse
from kdrun.training.shifted import shifted_sets
from kdrun.training.sizes import refuse_sizes
from kdrun.training.tracking import require_trackers

log = logging.getLogger(__name__)


def check(run: Job | RunConfig) -> None:
    """Refuse before anything is written what only data, networks and the machine can tell.

    Counts of labels and classes, unreadable files, a missing device; and the method is built once without memory, so
    that a wrong argument of a network or optimizer, or a feature that a network lacks, is found here.
    """
    job = Job.of(run)
    _check_machine(job.config)
    require_trackers(job.config)
    outline = Assembly.outline(job)
    config = outline.config
    check_measurements(job)
    # seeds and labels change neither networks nor optimizer
    shape = config.replace(seed=0, dataset=config.dataset.replace(num_labels=None, split_seed=None, split_file=None))
    key = run_key(shape)
    if key not in _BUILT:
        _build_without_memory(outline)
        _BUILT.add(key)
    _check_batches(outline)
    refuse_over_ranks(outline)
    length = ScheduleConfig(steps=1, batch_size=config.schedule.batch_size)  # of rates no shape depends
    step = shape.replace(schedule=length, ramps={}).model_dump_json()
    key = f"step {step} {plugins_of(config)} {outline.batch_sizes} {parts_seen(config)}"
    if key not in _BUILT:
        rehearse(outline)
        _BUILT.add(key)
    _require_validation(outline)
    _require_weights(outline)
    for role, required in job.requires.items():
        try:
            check(required)
        except ConfigError as error:
            raise ConfigError(*(f"{role}: {line}" for line in error.lines)) from None


def check_measurements(job: Job) -> None:
    """Refuse what `evaluate` asks for where its files are missing or do not fit the dataset."""
    config = job.config
    if config.evaluate.corruptions is None and not config.evaluate.sets:
        return
    arrays = load_dataset(config.dataset, job.outputs, pixels=False)
    if config.evaluate.corruptions is not None:
        corruptions_of(config.evaluate.corruptions, arrays)
    shifted_sets(config.evaluate, config.dataset, arrays.class_names)


def _check_machine(config: RunConfig) -> None:
    device = device_of(config.execution.device)
    if config.schedule.precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"schedule.precision: fp16 needs cuda, this run is on {device.type}; choose bf16 or fp32")
    if config.schedule.graph and device.type not in ("cuda", "cpu"):
        raise ConfigError(f"schedule.graph: needs cuda, this run is on {device.type}; set it to false")
    if config.schedule.compile is not None:
        require_compiler()


def _check_batches(outline: Assembly) -> None:
    """Refuse batches of several sizes where a step is captured as one."""
    schedule, sizes = outline.config.schedule, outline.batch_sizes
    if schedule.graph and len(sizes) > 1:
        one, other = (found["labeled"] for found in sizes)
        raise ConfigError(
            f"schedule.graph: a captured step has one size, and with last_batch=small {len(outline.split.labeled)} "
            f"labeled images come in batches of {one} and {other}; set schedule.last_batch to full, or graph to false"
        )


def _require_validation(outline: Assembly) -> None:
    """Refuse what follows the validation images where the split has none."""
    if len(outline.split.val):
        return
    config, dataset = outline.config, outline.config.dataset
    usual = DatasetConfig.model_fields["val_fraction"].default
    if dataset.split_file is None and dataset.val_fraction not in (0, usual):
        raise ConfigError(
            f"dataset.val_fraction: {dataset.val_fraction:g} of {len(outline.arrays.train_images)} training images is "
            "none; give a larger share, or 0 for no validation"
        )
    if config.schedule.decay.name == "plateau":
        raise ConfigError(
            "schedule.decay: plateau follows the validation score, and this split has no validation images"
        )
    what = config.needs.validation
    if what is not None:
        raise ConfigError(f"{what} validation images, and this split has none; give dataset.val_fraction")
    for name, ramp in config.ramps.items():
        if ramp.kind == "adaptive":
            raise ConfigError(
                f"ramps.{name}: adaptive follows the validation score, and this split has no validation images"
            )


def _require_weights(outline: Assembly) -> None:
    """Read published weights, fitted to networks without memory.

    Nothing may run for hours, a teacher say, and then find that they cannot be had.
    """
    config, arrays = outline.config, outline.arrays
    factory = Setup(**vars(outline.factory))  # of networks with their weights
    for model in (*config.students, *config.teacher.models):
        key = f"{model.model_dump_json()} {arrays.num_classes} {arrays.train_images.shape[-1]}"
        if model.pretrained and key not in _BUILT:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that nothing is copied
                factory.network(model, seed=0)
            _BUILT.add(key)


def _build_without_memory(outline: Assembly) -> None:
    config = outline.config
    wanted = config.needs.streams
    check_streams(wanted, outline.recipes)
    channels = outline.arrays.train_images.shape[-1]
    for key, model in config.networks:
        for name, values in (("mean", model.mean), ("std", model.std)):
            for_channels(values or [0.0], channels, f"{key}.{name}")
    strong = config.views.labeled == "strong" or any("strong" in views for views in wanted.values())
    if channels not in (1, 3) and strong:
        raise ConfigError(
            f"method={config.method.name}: its strong views are of gray or color images, and these have {channels} "
            "channels; choose a method without strong views"
        )
    _ = outline.stored  # which refuses views that cannot be stored
    sizes = config.method_class.batch_sizes(config)
    if set(sizes) != set(wanted):
        raise ConfigError(f"method={config.method.name}: batch_sizes must name the streams {', '.join(wanted)}")
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        raise ConfigError(f"method={config.method.name}: batch_sizes must be 1 or more, got {sizes}")
    try:
        _build_on_meta(outline)
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            log.debug("%s cannot be built without memory (%s)", config.method.name, error)
            return  # a part that looks at its numbers while it is built; the run will tell
        where = f" in {place}" if (place := line_in_plugin(error)) else ""
        raise ConfigError(
            f"method={config.method.name}: cannot be built: {type(error).__name__}{where}: {error}"
        ) from error


def _teachers(network: nn.Module) -> Iterator[tuple[str, Network]]:
    """The networks of a teacher, with the keys of the teachers that they are; a CLIP sees to its images itself."""
    for place, module in network.named_modules():
        members = re.fullmatch(r"((?:members\.\d+\.?|network\.?)*)", place)
        if isinstance(module, Network) and members is not None:
            key = ".".join(part for part in place.split(".") if part and part != "network")
            yield f"teacher.{key}" if key else "teacher", module


def _build_on_meta(outline: Assembly) -> None:
    method = outline.method
    with torch.device("meta"):
        shape = (2, *outline.size, outline.arrays.train_images.shape[3])
        pixels = torch.empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
        networks, students = method.networks(), outline.config.students
        for k, (name, network) in enumerate(networks.items()):
            fresh = k < len(students) and not students[k].pretrained
            refuse_images(network, pixels, name, "student" if len(networks) == 1 else f"students.{k}", fresh)
        if outline.teacher is not None:
            parts = outline.config.teacher.parts()
            for key, network in _teachers(outline.teacher.network):
                refuse_images(network, pixels, "teacher", f"{key}.model", isinstance(parts.get(key), OwnRunConfig))
    refuse_features(outline.config, method.needed.of_teacher)
    if not method.needed.trains:
        return
    make_optimizer(method)
    LearningRate(outline.config.schedule, outline.clock)
    refuse_sizes(outline)


_BUILT: set[str] = set()  # keys of the configurations that `check` has built in this process
