"""From a typed config to a record: skip what is done, build what is needed first, fit, evaluate, write down."""

import logging
import shutil
import time
import traceback
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from kdrun.artifacts import Pool
from kdrun.build import center_of, fitted, recipes_of, setup_of, split_of, to_device, view_size
from kdrun.config import ModelConfig, RunConfig, dump, plugged_classes, run_key
from kdrun.corruptions import Corruptions
from kdrun.corruptions import summary as summary_of_corruptions
from kdrun.data.dataset import Arrays, load_dataset
from kdrun.data.residency import place
from kdrun.data.shifted import shifted_sets
from kdrun.data.splits import Split, write_split
from kdrun.data.streams import check_streams, make_loader
from kdrun.data.views import Source
from kdrun.device import compile_networks, device_of, require_compiler, use_machine
from kdrun.errors import ConfigError, KdrunError
from kdrun.evaluation import Evaluator
from kdrun.files import write_bytes, write_json, write_text
from kdrun.finished import FinishedRun, finished, run_lock
from kdrun.kept import keep, refuse_features, stored_views
from kdrun.lock import Lock
from kdrun.loop import Loop, Progress, make_optimizer
from kdrun.method import Method, Setup, Teacher
from kdrun.models.flops import flops_of
from kdrun.record import SCHEMA, Record, code_version, finite, package_versions, read_record, write_record
from kdrun.registry import plugin_hashes
from kdrun.schedule import LearningRate
from kdrun.seeding import seed_everything, subseed
from kdrun.teachers import make_teacher, untrained_teacher
from kdrun.tracking import make_tracker

log = logging.getLogger(__name__)


def run(config: RunConfig, overrides: Iterable[str] = (), job_type: str = "train") -> Record:
    """The record of this run: read when it is done already, else trained now, after everything it requires.

    What `evaluate` asks for is measured then, if the record does not have it.

    Returns:
        The record; its `status` is done or failed (then `error` says why, and log.txt holds the traceback).

    Raises:
        KeyboardInterrupt: stopped by a signal; the same call goes on from the checkpoint.
    """
    record = _trained(config, overrides, job_type)
    if record["status"] == "done" and job_type == "train":
        if config.evaluate.corruptions is not None:
            record = _with_corruptions(config, config.evaluate.corruptions)
        if config.evaluate.sets:
            record = _with_sets(config)
    return record


def _trained(config: RunConfig, overrides: Iterable[str], job_type: str) -> Record:
    directory = config.directory
    done = finished(directory)
    if done is not None:
        log.info("done already: %s", summary(directory, done))
        return done
    with run_lock(directory) as lock:
        done = finished(directory)  # the process that we waited for may have done it
        if done is not None:
            log.info("done by another process: %s", summary(directory, done))
            return done
        record: Record = {"status": "failed", "error": None}
        handler: logging.Handler | None = None
        try:
            handler = _LogFile(_made(directory) / "log.txt")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logging.getLogger("kdrun").addHandler(handler)
            record = _new_record(config, directory, list(overrides))
            write_record(directory, record)
            _execute(config, directory, record, job_type, lock)
            record["status"] = "done"
            lock.require()
            write_record(directory, record)
            if not config.execution.keep_checkpoint:
                shutil.rmtree(directory / "checkpoint", ignore_errors=True)
            log.info("done: %s", summary(directory, record))
        except Exception as error:
            record.update(status="failed", error={"type": type(error).__name__, "message": str(error)})
            known = isinstance(error, KdrunError | OSError)
            log.error("failed: %s: %s%s", directory, "" if known else f"{type(error).__name__}: ", error)
            if handler is not None:
                handler.handle(logging.makeLogRecord({"levelname": "ERROR", "msg": traceback.format_exc()}))
            if "schema" in record and not lock.lost:
                _write_failure(directory, record)
        finally:
            if handler is not None:
                logging.getLogger("kdrun").removeHandler(handler)
                handler.close()
    return record


class _LogFile(logging.FileHandler):
    """log.txt. Where its disk is full, the run says so once; logging would print a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def summary(directory: Path, record: Record) -> str:
    """One line: the directory and the headline figures."""
    net = record["headline"]
    shown = [f"{k} {v:.4f}" for k, v in record["metrics"].items() if k in {f"test/{net}/top1", f"val/{net}/top1"}]
    return f"{directory} ({', '.join(shown)})"


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
    arrays = load_dataset(config.dataset, _outputs(config.directory), pixels=False)
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
    what = config.method_class.needs_validation(config)
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
    arrays = load_dataset(config.dataset, _outputs(config.directory), pixels=False)
    if config.evaluate.corruptions is not None:
        _corruptions(config.evaluate.corruptions, arrays)
    shifted_sets(config.evaluate, config.dataset, arrays.class_names)


def _require_weights(model: str, setup: Setup) -> None:
    """Load published weights once: nothing may run for hours, a teacher say, and then find that they cannot be had."""
    key = f"{model} {setup.num_classes} {setup.in_chans}"
    if key not in _BUILT:
        setup.network(ModelConfig.model_validate_json(model), seed=0)
        _BUILT.add(key)


def _build_without_memory(config: RunConfig, arrays: Arrays, split: Split) -> None:
    wanted = config.method_class.streams
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
        if config.teacher.source != "none":
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
    refuse_features(config, method)
    if not method.trains:
        return
    make_optimizer(method)
    LearningRate(config.schedule, config.schedule.clock(len(split.labeled)))


_BUILT: set[str] = set()  # keys of the configurations that `check` has built in this process


def _untrained(model: ModelConfig) -> ModelConfig:
    return model.replace(pretrained=False)


# ------------------------------------------------------------------------------------------------------ one run


def _execute(config: RunConfig, directory: Path, record: Record, job_type: str, lock: Lock) -> None:
    prerequisites: dict[str, RunConfig] = config.method_class.requires(config)
    required = {role: _require(role, other) for role, other in prerequisites.items()}
    record["requires"] = {role: run_key(other) for role, other in prerequisites.items()}

    device = use_machine(config.execution)
    arrays = load_dataset(config.dataset, _outputs(directory))
    _warn(record, *arrays.warnings)
    split = split_of(config, arrays)
    _keep_split(split, directory, record, arrays)
    config = fitted(config, split)
    train_images, test_images = place(arrays, device, config.dataset.resident, config.execution.workers)

    seed_everything(config.seed)
    setup = setup_of(config, arrays, split)
    frozen = make_teacher(config.teacher, setup, required, outputs=_outputs(directory))
    teacher = None if frozen is None else Teacher(to_device(frozen, config, device))
    method: Method = to_device(config.method_class(config, replace(setup, teacher=teacher)), config, device)
    method.start(required)
    if config.schedule.compile is not None:
        compile_networks([*method.networks().values(), *([frozen] if frozen else [])], config.schedule.compile)
    recipes = recipes_of(config, arrays)
    extra = _artifacts(config, required, record, arrays, split, train_images, device)
    refuse_features(config, method)
    stored = stored_views(config, recipes["weak"], len(train_images))
    if stored is not None and teacher is not None and frozen is not None and isinstance(train_images, Tensor):
        streams = {"labeled": split.labeled, "unlabeled": split.unlabeled}
        shown = np.unique(np.concatenate([streams[name] for name in method.streams]))
        teacher.kept, record["artifacts"]["teacher_outputs"] = keep(
            frozen, stored, train_images, torch.from_numpy(shown), arrays.num_classes, device,
            config.execution.eval_batch_size, config.schedule.precision, _outputs(directory),
        )  # fmt: skip
        log.info("the teacher's logits of stored views: %s", record["artifacts"]["teacher_outputs"])
    clock = config.schedule.clock(len(split.labeled))
    seed = subseed(config.seed, "streams", method.role) if method.role else config.seed
    loader = make_loader(
        method.streams, arrays, split, train_images, type(method).batch_sizes(config), recipes, seed, extra,
        clock.total_steps, config.views.mix, device, view_size(config, arrays), stored,
    )  # fmt: skip
    labels, everything = torch.from_numpy(arrays.train_labels), torch.arange(len(test_images), device=device)
    val = torch.from_numpy(split.val)
    evaluator = Evaluator(
        {
            "val": (train_images, val.to(device), labels[val].to(device)),
            "test": (test_images, everything, torch.from_numpy(arrays.test_labels).to(device)),
        },
        config.execution.eval_batch_size,
        config.schedule.precision,
        config.schedule.compile is not None,
        center_of(config, arrays),
    )
    averaged, size = config.schedule.ema_decay is not None, view_size(config, arrays)
    nets = {
        name: {"model": net.name, "num_params": net.num_params, "flops": flops_of(net, size), "ema": averaged}
        for name, net in method.networks().items()
    }
    record.update(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(), steps=clock.total_steps if method.trains else 0, headline=method.headline,
        nets=nets,
    )  # fmt: skip
    write_record(directory, record)
    work = f"{clock.total_steps} steps of {config.schedule.batch_size}" if method.trains else "nothing to train"
    sizes = [f"{n['model']} {n['num_params']:,} parameters" for n in nets.values()]
    log.info(
        "%s on %s: %d labeled of %d, %s",
        config.method.name, config.dataset.name, len(split.labeled), len(split.unlabeled), ", ".join([work, *sizes]),
    )  # fmt: skip

    tracker = make_tracker(config, directory, job_type)
    failed = True
    try:
        loop, progress, logits = None, Progress(), {}
        if method.trains:
            loop = Loop(
                method, loader, evaluator, clock, directory, tracker, run_key(config), lock.require, labels.to(device)
            )
            progress = loop.run()
        started = time.perf_counter()
        if loop is not None:
            logits = loop.final_logits()
        if teacher is not None:
            logits.update(evaluator.logits({"teacher": lambda view: teacher(view).logits}))
        metrics = {**evaluator.final_metrics(logits), **method.choices()}
        for line in method.findings(logits, {name: parts[2] for name, parts in evaluator.splits.items()}):
            _warn(record, line)
        lock.require()
        evaluator.save(directory / "predictions", logits)
        if loop is not None:
            _save_networks(method, loop, directory)
        progress.seconds["eval"] += time.perf_counter() - started
        progress.seconds["total"] += time.perf_counter() - started
        record.update(
            metrics=metrics,
            best_on_val=progress.best_on_val,
            seconds={k: round(v, 3) for k, v in progress.seconds.items()},
        )
        failed = False
    finally:
        loader.close()
        tracker.finish(record["metrics"], failed)


def _corruptions(folder: str, arrays: Arrays) -> Corruptions:
    return Corruptions(folder, arrays.test_images.shape[1:], arrays.num_classes)


def _with_corruptions(config: RunConfig, folder: str) -> Record:
    """The record of a finished run with what its networks and its teacher do on corrupted images.

    All cells are in corruptions.json, their means among the metrics.
    """
    corruptions = _corruptions(folder, load_dataset(config.dataset, _outputs(config.directory), pixels=False))
    run = FinishedRun.open(config.directory)
    with run.amended() as record:
        if record.get("corruptions") == corruptions.hash:
            return record
        rebuilt = run.rebuild(config.execution)
        found = corruptions.evaluate(
            rebuilt.predictors, rebuilt.device,
            batch_size=config.execution.eval_batch_size, precision=config.schedule.precision,
            center=rebuilt.center,
        )  # fmt: skip
        write_json(run.directory / "corruptions.json", finite(found))
        record["metrics"] |= summary_of_corruptions(found)
        record["corruptions"] = corruptions.hash
    log.info("corruptions: %s (%s)", run.directory / "corruptions.json", folder)
    return record


def _with_sets(config: RunConfig) -> Record:
    """The record of a finished run with what its networks and its teacher do on other test sets."""
    arrays = load_dataset(config.dataset, _outputs(config.directory), pixels=False)
    run = FinishedRun.open(config.directory)
    with run.amended() as record:
        known = record.get("sets") or {}
        asked = shifted_sets(config.evaluate, config.dataset, arrays.class_names)
        missing = [part for part in asked if known.get(part.name) != part.hash]
        if not missing:
            return record
        rebuilt = run.rebuild(config.execution)
        for part in missing:
            record["metrics"] |= finite(part.evaluate(
                rebuilt.predictors, rebuilt.device,
                batch_size=config.execution.eval_batch_size, precision=config.schedule.precision,
                center=rebuilt.center,
            ))  # fmt: skip
            record["sets"] = {**(record.get("sets") or {}), part.name: part.hash}
            log.info(
                "%s: %d images of %d classes, top1 %.4f", part.name, len(part.files), len(part.classes),
                record["metrics"][f"{part.name}/{record['headline']}/top1"],
            )  # fmt: skip
    return record


def _artifacts(
    config: RunConfig, required: dict[str, Path], record: Record, arrays: Arrays, split: Split, images: Source,
    device: torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    """What the method makes of the pool before training; its figures go into the record."""
    labels, pool = torch.from_numpy(arrays.train_labels), torch.from_numpy(split.unlabeled)

    def judge(index: Tensor, label: Tensor) -> dict[str, Any]:
        truth = labels[index]
        known = truth >= 0
        precision = (truth == label)[known].float().mean().item() if known.any() else None
        return {"coverage": len(index) / len(pool), "precision": precision}

    made = config.method_class.artifacts(
        config, required,
        Pool(images, pool, arrays.num_classes, config.execution.eval_batch_size, config.schedule.precision,
             _outputs(config.directory), judge, partial(_warn, record), device, center_of(config, arrays)),
    )  # fmt: skip
    record["artifacts"] = {name: figures for name, (_, figures) in made.items()}
    return {name: values.to(device) for name, (values, _) in made.items()}


def _warn(record: Record, *lines: str) -> None:
    """Say lines in the log and keep them in the record."""
    for line in lines:
        log.warning("%s", line)
        record["warnings"].append(line)


def _require(role: str, config: RunConfig) -> Path:
    log.info("needs its %s: %s", role, config.directory)
    if config.directory not in _DIVERGED:
        record = run(config, job_type=role)
        if record["status"] == "done":
            return config.directory
        if record["error"]["type"] != "NonFiniteLoss":  # another cause may be gone the next time
            raise KdrunError(f"its {role} failed: {config.directory}: {record['error']['message']}")
        _DIVERGED[config.directory] = record["error"]["message"]
    raise KdrunError(f"its {role} failed: {config.directory}: {_DIVERGED[config.directory]}")


_DIVERGED: dict[Path, str] = {}  # prerequisites that diverged in this process: they would again


def _keep_split(split: Split, directory: Path, record: Record, arrays: Arrays) -> None:
    """Write the split's indices beside the runs (one file for each split), and refuse to go on with another split."""
    found = split.summary(arrays.train_labels, arrays.num_classes)
    old = record["split"].get("hash")
    if old is not None and old != found["hash"] and (directory / "checkpoint").exists():
        raise KdrunError(f"{directory}: its checkpoint was trained on split {old}, the data now gives {found['hash']}")
    place = _outputs(directory) / "artifacts" / "split" / found["hash"]
    if not (place / "spec.json").exists():
        write_split(split, place / "split.npz")
        write_json(place / "spec.json", {"dataset": record["dataset"], **found})
    record["split"] = found
    if isinstance(record["num_labels"], str):  # so many of each class, or a share
        record["num_labels"] = len(split.labeled)


def _save_networks(method: Method, loop: Loop, directory: Path) -> None:
    from safetensors.torch import save

    loop.save_networks()
    with loop.ema.applied() if loop.ema is not None else nullcontext():
        own = {
            name: value.detach().cpu().contiguous()
            for name, value in method.state_dict().items()
            if not name.startswith(("students.", "loss_sets."))  # terms serve training alone; CRD's memories are large
        }
    if own:
        write_bytes(directory / "method.safetensors", save(own))


def _new_record(config: RunConfig, directory: Path, overrides: list[str]) -> Record:
    old = read_record(directory) or {}
    return {
        "schema": SCHEMA,
        "status": "running",
        "key": run_key(config),
        "method": config.method.name,
        "dataset": config.dataset.name,
        "num_labels": config.dataset.num_labels,
        "seed": config.seed,
        "config": _write_config(config, directory),
        "overrides": overrides,
        "code": code_version(),
        "packages": package_versions(),
        "plugins": dict(plugin_hashes(plugged_classes(config))),
        "device": None,
        "precision": config.schedule.precision,
        "threads": None,
        "world_size": 1,
        "steps": None,
        "seconds": {},
        "split": old.get("split") or {},
        "requires": {},
        "artifacts": {},
        "nets": {},
        "headline": None,
        "metrics": {},
        "best_on_val": None,
        "corruptions": None,
        "sets": {},
        "warnings": [],
        "error": None,
    }


def _write_config(config: RunConfig, directory: Path) -> dict[str, Any]:
    node = dump(config)
    write_text(directory / "config.yaml", yaml.safe_dump(node, sort_keys=False, allow_unicode=True))
    return node


def _write_failure(directory: Path, record: Record) -> None:
    try:
        write_record(directory, record)
    except OSError as error:  # the disk may be what failed
        log.error("%s: the record could not be written either (%s)", directory, error.strerror)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _outputs(directory: Path) -> Path:
    return directory.parents[4]
