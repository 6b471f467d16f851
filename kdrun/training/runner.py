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

from kdrun.config.key import plugged_classes, run_directory, run_key
from kdrun.config.nodes import dump
from kdrun.config.run import RunConfig
from kdrun.core.device import compile_networks, use_machine
from kdrun.core.errors import KdrunError
from kdrun.core.files import write_bytes, write_json, write_text
from kdrun.core.lock import Lock
from kdrun.core.registry import plugin_hashes
from kdrun.core.seeding import seed_everything, subseed
from kdrun.data.arrays import Arrays
from kdrun.data.load import load_dataset
from kdrun.data.loader import Loader, make_loader
from kdrun.data.residency import place
from kdrun.data.splits import Split, write_split
from kdrun.data.views.view import Source
from kdrun.methods.method import Method
from kdrun.methods.pool import Pool, Required, Start
from kdrun.models.flops import flops_of
from kdrun.runs.layout import finished, made, outputs_of, run_lock
from kdrun.runs.record import SCHEMA, Record, code_version, package_versions, read_record, write_record
from kdrun.teachers.cache import keep, refuse_features, stored_views
from kdrun.teachers.kind import make_teacher
from kdrun.teachers.teacher import Teacher
from kdrun.training.assembly import (
    center_of,
    fitted,
    load_head_warmups,
    recipes_of,
    setup_of,
    split_of,
    to_device,
    view_size,
)
from kdrun.training.evaluator import Evaluator, chosen
from kdrun.training.loop import Loop, Progress
from kdrun.training.measure import with_corruptions, with_sets
from kdrun.training.tracking import make_tracker

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
            record = with_corruptions(config, config.evaluate.corruptions)
        if config.evaluate.sets:
            record = with_sets(config)
    return record


def _trained(config: RunConfig, overrides: Iterable[str], job_type: str) -> Record:
    directory = run_directory(config)
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
            handler = _LogFile(made(directory) / "log.txt")
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


def _execute(config: RunConfig, directory: Path, record: Record, job_type: str, lock: Lock) -> None:
    prerequisites: dict[str, RunConfig] = config.method_class.requires(config)
    required = {role: _require(role, other) for role, other in prerequisites.items()}
    record["requires"] = {role: run_key(other) for role, other in prerequisites.items()}

    device = use_machine(config.execution.device, config.execution.threads)
    arrays = load_dataset(config.dataset, outputs_of(directory))
    _warn(record, *arrays.warnings)
    split = split_of(config, arrays)
    _keep_split(split, directory, record, arrays)
    config = fitted(config, split)
    train_images, test_images = place(arrays, device, config.dataset.resident, config.execution.workers)

    seed_everything(config.seed)
    setup = setup_of(config, arrays, split)
    frozen = make_teacher(config.teacher, setup, required, outputs=outputs_of(directory))
    teacher = None if frozen is None else Teacher(to_device(frozen, config, device))
    method: Method[Any] = to_device(config.method_class(config, replace(setup, teacher=teacher)), config, device)
    load_head_warmups(method, required)
    if config.schedule.compile is not None:
        compile_networks([*method.networks().values(), *([frozen] if frozen else [])], config.schedule.compile)
    recipes = recipes_of(config, arrays)
    needs = method.needed
    refuse_features(config, needs.of_teacher)
    stored = stored_views(config, recipes["weak"], len(train_images))
    if stored is not None and teacher is not None and frozen is not None and isinstance(train_images, Tensor):
        streams = {"labeled": split.labeled, "unlabeled": split.unlabeled}
        shown = np.unique(np.concatenate([streams[name] for name in needs.streams]))
        teacher.kept, record["artifacts"]["teacher_outputs"] = keep(
            frozen, stored, train_images, torch.from_numpy(shown), arrays.num_classes, device,
            config.execution.eval_batch_size, config.schedule.precision, outputs_of(directory),
        )  # fmt: skip
        log.info("the teacher's logits of stored views: %s", record["artifacts"]["teacher_outputs"])
    clock = config.schedule.clock(len(split.labeled))
    seed = subseed(config.seed, "streams", needs.init) if needs.init else config.seed
    loader = make_loader(
        needs.streams, arrays, split, train_images, type(method).batch_sizes(config), recipes, seed, None,
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
        threads=torch.get_num_threads(), steps=clock.total_steps if needs.trains else 0, headline=method.headline,
        nets=nets,
    )  # fmt: skip
    write_record(directory, record)
    work = f"{clock.total_steps} steps of {config.schedule.batch_size}" if needs.trains else "nothing to train"
    sizes = [f"{n['model']} {n['num_params']:,} parameters" for n in nets.values()]
    log.info(
        "%s on %s: %d labeled of %d, %s",
        config.method.name, config.dataset.name, len(split.labeled), len(split.unlabeled), ", ".join([work, *sizes]),
    )  # fmt: skip

    pool = _pool(config, record, arrays, split, train_images, device)
    tracker = make_tracker(config, directory, job_type)
    failed = True
    try:
        loop, progress, logits = None, Progress(), {}
        if needs.trains:
            loop = Loop(
                method, loader, evaluator, clock, directory, tracker, run_key(config), lock.require, labels.to(device),
                partial(_before, method, record, required, pool, loader, clock.total_steps),
            )  # fmt: skip
            progress = loop.run()
        started = time.perf_counter()
        if loop is not None:
            logits = loop.final_logits()
        if teacher is not None:
            logits.update(evaluator.logits(teacher.predict))
        metrics = {**evaluator.final_metrics(logits), **chosen(method)}
        _warn(record, *evaluator.warnings(logits, needs))
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


def _pool(
    config: RunConfig, record: Record, arrays: Arrays, split: Split, images: Source, device: torch.device
) -> Pool:
    labels, pool = torch.from_numpy(arrays.train_labels), torch.from_numpy(split.unlabeled)

    def judge(index: Tensor, label: Tensor) -> dict[str, Any]:
        truth = labels[index]
        known = truth >= 0
        precision = (truth == label)[known].float().mean().item() if known.any() else None
        return {"coverage": len(index) / len(pool), "precision": precision}

    return Pool(
        images, pool, arrays.num_classes, config.execution.eval_batch_size, config.schedule.precision,
        outputs_of(run_directory(config)), judge, partial(_warn, record), device, center_of(config, arrays),
    )  # fmt: skip


def _before(
    method: Method[Any], record: Record, required: dict[str, Path], pool: Pool, loader: Loader, first: int, fresh: bool
) -> None:
    """What the method does before its first step; its figures go into the record, its values to the batches."""
    runs = {
        role: Required(directory, read_record(directory) or {}, record["requires"][role])
        for role, directory in required.items()
    }
    start = Start(required=runs, pool=pool, batches=loader.batch, first=first, fresh=fresh)
    made = method.before(start)
    record["artifacts"] |= {name: figures for name, (_, figures) in made.items()}
    loader.give({name: values.to(pool.device) for name, (values, _) in made.items()})


def _warn(record: Record, *lines: str) -> None:
    """Say lines in the log and keep them in the record."""
    for line in lines:
        log.warning("%s", line)
        record["warnings"].append(line)


def _require(role: str, config: RunConfig) -> Path:
    log.info("needs its %s: %s", role, run_directory(config))
    if run_directory(config) not in _DIVERGED:
        record = run(config, job_type=role)
        if record["status"] == "done":
            return run_directory(config)
        if record["error"]["type"] != "NonFiniteLoss":  # another cause may be gone the next time
            raise KdrunError(f"its {role} failed: {run_directory(config)}: {record['error']['message']}")
        _DIVERGED[run_directory(config)] = record["error"]["message"]
    raise KdrunError(f"its {role} failed: {run_directory(config)}: {_DIVERGED[run_directory(config)]}")


_DIVERGED: dict[Path, str] = {}  # prerequisites that diverged in this process: they would again


def _keep_split(split: Split, directory: Path, record: Record, arrays: Arrays) -> None:
    """Write the split's indices beside the runs (one file for each split), and refuse to go on with another split."""
    found = split.summary(arrays.train_labels, arrays.num_classes)
    old = record["split"].get("hash")
    if old is not None and old != found["hash"] and (directory / "checkpoint").exists():
        raise KdrunError(f"{directory}: its checkpoint was trained on split {old}, the data now gives {found['hash']}")
    place = outputs_of(directory) / "artifacts" / "split" / found["hash"]
    if not (place / "spec.json").exists():
        write_split(split, place / "split.npz")
        write_json(place / "spec.json", {"dataset": record["dataset"], **found})
    record["split"] = found
    if isinstance(record["num_labels"], str):  # so many of each class, or a share
        record["num_labels"] = len(split.labeled)


def _save_networks(method: Method[Any], loop: Loop, directory: Path) -> None:
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
