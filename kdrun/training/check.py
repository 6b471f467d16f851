"""What only data, networks and the machine can refuse, before anything is written."""

import logging
from dataclasses import replace

import torch

from kdrun.config.key import run_directory, run_key
from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.core.device import device_of, require_compiler
from kdrun.core.errors import ConfigError
from kdrun.data.arrays import Arrays
from kdrun.data.load import load_dataset
from kdrun.data.loader import check_streams
from kdrun.data.splits import Split
from kdrun.methods.step import Setup
from kdrun.runs.layout import outputs_of
from kdrun.teachers.cache import refuse_features, stored_views
from kdrun.teachers.kind import untrained_teacher
from kdrun.teachers.teacher import Teacher
from kdrun.training.assembly import fitted, recipes_of, setup_of, split_of, view_size
from kdrun.training.measure import corruptions_of
from kdrun.training.optimizer import make_optimizer
from kdrun.training.rates import LearningRate
from kdrun.training.shifted import shifted_sets

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Refuse before anything is written what only data, networks and the machine can tell.

    Counts of labels and classes, unreadable files, a missing device; and the method is built once without memory, so
    that a wrong argument of a network or optimizer, or a feature that a network lacks, is found here.
    """
    device = device_of(config.execution.device)
    if config.schedule.precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"schedule.precision: fp16 needs cuda, this run is on {device.type}; choose bf16 or fp32")
    if config.schedule.compile is not None:
        require_compiler()
    arrays = load_dataset(config.dataset, outputs_of(run_directory(config)), pixels=False)
    split = split_of(config, arrays)
    config = fitted(config, split)
    check_measurements(config)
    # seeds and labels change neither networks nor optimizer
    shape = config.replace(seed=0, dataset=config.dataset.replace(num_labels=None, split_seed=None, split_file=None))
    key = run_key(shape)
    if key not in _BUILT:
        _build_without_memory(config, arrays, split)
        _BUILT.add(key)
    if config.schedule.decay.name == "plateau" and not len(split.val):
        raise ConfigError(
            "schedule.decay: plateau follows the validation score, and this split has no validation images"
        )
    what = config.needs.validation
    if what is not None and not len(split.val):
        raise ConfigError(f"{what} validation images, and this split has none; give dataset.val_fraction")
    adaptive = [name for name, ramp in config.ramps.items() if ramp.kind == "adaptive"]
    if adaptive and not len(split.val):
        raise ConfigError(
            f"ramps.{adaptive[0]}: adaptive follows the validation score, and this split has no validation images"
        )
    for model in (*config.students, *config.teacher.models):
        if model.pretrained:
            _require_weights(model.model_dump_json(), setup_of(config, arrays, split))
    for role, required in config.method_class.requires(config).items():
        try:
            check(required)
        except ConfigError as error:
            raise ConfigError(*(f"{role}: {line}" for line in error.lines)) from None


def check_measurements(config: RunConfig) -> None:
    """Refuse what `evaluate` asks for where its files are missing or do not fit the dataset."""
    if config.evaluate.corruptions is None and not config.evaluate.sets:
        return
    arrays = load_dataset(config.dataset, outputs_of(run_directory(config)), pixels=False)
    if config.evaluate.corruptions is not None:
        corruptions_of(config.evaluate.corruptions, arrays)
    shifted_sets(config.evaluate, config.dataset, arrays.class_names)


def _require_weights(model: str, setup: Setup) -> None:
    """Load published weights once: nothing may run for hours, a teacher say, and then find that they cannot be had."""
    key = f"{model} {setup.num_classes} {setup.in_chans}"
    if key not in _BUILT:
        setup.network(ModelConfig.model_validate_json(model), seed=0)
        _BUILT.add(key)


def _build_without_memory(config: RunConfig, arrays: Arrays, split: Split) -> None:
    wanted = config.needs.streams
    recipes = recipes_of(config, arrays)
    check_streams(wanted, recipes)
    stored_views(config, recipes["weak"], len(arrays.train_images))
    if set(config.method_class.batch_sizes(config)) != set(wanted):
        raise ConfigError(f"method={config.method.name}: batch_sizes must name the streams {', '.join(wanted)}")
    try:
        _build_on_meta(config, arrays, split)
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            log.debug("%s cannot be built without memory (%s)", config.method.name, error)
            return  # a part that looks at its numbers while it is built; the run will tell
        raise ConfigError(f"method={config.method.name}: cannot be built: {type(error).__name__}: {error}") from error


def _build_on_meta(config: RunConfig, arrays: Arrays, split: Split) -> None:
    with torch.device("meta"):
        setup = setup_of(config, arrays, split)
        if config.teacher.kind().present:
            setup = replace(setup, teacher=Teacher(untrained_teacher(config.teacher, setup)))
        bare = config.replace(students=[_untrained(model) for model in config.students])
        method = config.method_class(bare, setup)
        shape = (2, *view_size(config, arrays), arrays.train_images.shape[3])
        pixels = torch.empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
        for name, network in method.networks().items():
            try:
                network(pixels)
            except (AssertionError, RuntimeError, ValueError) as error:
                if "meta" in str(error):
                    raise
                size = "x".join(map(str, pixels.shape[-2:]))
                unfit = f"{name}: {network.name} does not take images of {size}"
                raise ConfigError(f"{unfit}: {error}; see student.size") from None
    refuse_features(config, method.needed.of_teacher)
    if not method.needed.trains:
        return
    make_optimizer(method)
    LearningRate(config.schedule, config.schedule.clock(len(split.labeled)))


_BUILT: set[str] = set()  # keys of the configurations that `check` has built in this process


def _untrained(model: ModelConfig) -> ModelConfig:
    return model.replace(pretrained=False)
