"""From a typed config to a record: skip what is done, build what is needed first, fit, evaluate, write down."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdrun.config.job import Job
from kdrun.config.run import RunConfig
from kdrun.core import signals
from kdrun.core.errors import Held, KdrunError
from kdrun.core.files import write_bytes
from kdrun.core.lock import Lock
from kdrun.core.progress import shown
from kdrun.core.seeding import seed_everything
from kdrun.core.world import world
from kdrun.data.load import content_of
from kdrun.data.overview import overview
from kdrun.data.splits import keep_split
from kdrun.methods.method import Method
from kdrun.methods.pool import Required, Start
from kdrun.models.flops import flops_of
from kdrun.models.network import apart
from kdrun.runs.done import clear, done_record, sweep_run, tidy
from kdrun.runs.layout import run_lock
from kdrun.runs.place import settled
from kdrun.runs.record import Record, read_record, summary, write_record
from kdrun.runs.whole import METRICS, discard, results, told
from kdrun.teachers.cache import refuse_features
from kdrun.training.assembly import Assembly
from kdrun.training.costs import Operations, evaluation_cost, fitting_threads
from kdrun.training.evaluator import Logits, choice_metrics
from kdrun.training.finite import refuse_given_networks, refuse_metrics, refuse_networks
from kdrun.training.logbook import SAID, log_file, new_record, note_failure, remove_checkpoint, say, told_of_one_batch
from kdrun.training.loop import Loop
from kdrun.training.measure import with_corruptions, with_sets
from kdrun.training.remarks import remarks, results_remarks
from kdrun.training.state import Progress
from kdrun.training.statistics import AskedTeacher
from kdrun.training.tracking import Tracking, make_tracking

log = logging.getLogger(__name__)
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""What ranks exchange tensors over, by device."""
BESIDE = ("students.", "loss_sets.")
"""What is not a method's own; of these, terms serve training alone (CRD's memories are large), and are not saved."""


def run(asked: Job | RunConfig, job_type: str = "train", wait: bool = True) -> Record:
    """The record of this run: read when it is done already, else trained now, after everything it requires.

    What `evaluate` asks for is measured then, if the record does not have it.

    Args:
        wait: for another process that is at work on it; false: raise `Held`.

    Returns:
        The record; its `status` is done or failed (then `error` says why, and log.txt holds the traceback).

    Raises:
        Interrupted: stopped by a signal (a KeyboardInterrupt); the same call goes on from the checkpoint.
    """
    job = Job.of(asked)
    here = world()
    if job_type == "train":
        SAID.clear()
    with signals.taken(), signals.during(f"working on {job.directory}"), shown(job.config.execution.progress):
        try:
            job = _settled(job)
            record = _train(job, job_type, wait)
            if record["status"] == "done" and job_type == "train":
                record = here.once(partial(_measured, job, record))
        except Exception as error:
            here.fail(why := here.blamed(error))
            if why is error:
                raise
            raise why from error
    return record


def _settled(job: Job) -> Job:
    """As `settled`, with what rank 0 finds."""
    content = world().once(lambda: settled(job).content)
    return job if content == job.content else replace(job, content=content)


def _measured(job: Job, record: Record) -> Record:
    """The record with what `evaluate` asks for."""
    if job.config.evaluate.corruptions is not None:
        record = with_corruptions(job, job.config.evaluate.corruptions)
    if job.config.evaluate.sets:
        record = with_sets(job)
    return record


def _train(job: Job, job_type: str, wait: bool) -> Record:
    here = world()
    done = here.once(partial(_done_already, job, job_type))
    if done is not None:
        return done
    with ExitStack() as held:
        lock = held.enter_context(run_lock(job.directory, wait)) if here.first else None
        done = here.once(partial(_done_by_another, job, job_type))
        return _made(job, job_type, lock, wait) if done is None else done


def _done_already(job: Job, job_type: str) -> Record | None:
    if job.content is not None:
        log.warning("%s: what lies there is a run on other data; this is another run", job.first)
    done, _ = done_record(job.directory, asked=job_type == "train")
    if done is not None:
        tidy(job, done)
        log.info("done already: %s", summary(job.directory, done))
    return done


def _done_by_another(job: Job, job_type: str) -> Record | None:
    """By whom we waited for, perhaps. Else what is in the way is removed."""
    sweep_run(job.directory)
    done, damage = done_record(job.directory, job_type == "train")
    if done is not None:
        clear(job, done)
        log.info("done by another process: %s", summary(job.directory, done))
    elif damage:
        log.warning("%s; it is trained anew", told(job.directory, damage))
        discard(job.directory, damage)
    return done


def _made(job: Job, job_type: str, lock: Lock | None, wait: bool) -> Record:
    """Args:
    lock: None: another rank has it, and writes.
    """
    here, record = world(), Record(status="failed", error=None)
    handler: logging.Handler | None = None
    with ExitStack() as opened:

        def fail(error: Exception) -> None:
            note_failure(job.directory, record, error, handler, lock)

        here.on_failure.append(fail)
        try:
            handler = opened.enter_context(log_file(job.directory)) if here.first else None
            record = here.once(partial(_begin, job, here.size))
            _execute(job, record, job_type, _nobody if lock is None else lock.require, wait)
            record = here.once(partial(_end, job, record, lock))
        except Held:  # by another process, of a run that this one needs
            raise
        except Exception as error:
            if here.size > 1:
                signals.ignore()  # where one rank has ended, its launcher ends the others
            fail(why := here.blamed(error))
            here.fail(why)
        finally:
            here.on_failure.remove(fail)
    return record


def _begin(job: Job, ranks: int) -> Record:
    record = new_record(job, ranks)
    write_record(job.directory, record)
    return record


def _nobody() -> None:
    """Of a rank that does not write, nobody can take over the run."""


def _end(job: Job, record: Record, lock: Lock | None) -> Record:
    record["status"] = "done"
    if lock is not None:
        lock.require()
    write_record(job.directory, record)
    if not job.config.execution.keep_checkpoint:
        remove_checkpoint(job.directory)
    log.info("done: %s", summary(job.directory, record))
    return record


def _execute(job: Job, record: Record, job_type: str, still_ours: Callable[[], None], wait: bool) -> None:
    here = world()
    requires = {role: _settled(other) for role, other in job.requires.items()}
    required = {role: _require(role, other, wait) for role, other in requires.items()}
    record["requires"] = {role: other.key for role, other in requires.items()}

    assembly = Assembly.of(job, required=required)
    here.first_then(lambda: assembly.arrays)  # which may have to be packed
    record["inputs"]["dataset"] = here.once(lambda: content_of(job.config.dataset, job.outputs))
    record["overview"], odd = overview(job.config.dataset, assembly.arrays, job.outputs)
    record["class_names"] = list(assembly.arrays.class_names)
    for line in record["overview"]:
        say(logging.INFO, line)
    _warn(record, *remarks(assembly), *odd)
    _keep_split(assembly, record)
    _ = assembly.images  # before networks: what may be resident is a share of the memory that is free
    seed_everything(job.config.seed)
    operations = Operations.of(assembly)
    _set_threads(assembly, record, operations)
    here.first_then(lambda: (assembly.teacher, assembly.method))  # texts of classes may have to be encoded
    refuse_given_networks(assembly)
    here.first_then(lambda: _keep_logits(assembly, record))
    _describe(assembly, record, operations)
    if here.first:
        write_record(job.directory, record)
    _fit(assembly, record, job_type, still_ours)


def _set_threads(assembly: Assembly, record: Record, operations: Operations) -> None:
    """Those that the run was begun with, or that it gains by: last digits depend on their number."""
    if record["threads"] is not None:
        log.info("goes on with %d threads, with which it was begun", record["threads"])
        torch.set_num_threads(record["threads"])
    elif assembly.config.execution.threads == "auto":
        torch.set_num_threads(fitting_threads(assembly, torch.get_num_threads(), operations))


def _require(role: str, job: Job, wait: bool) -> Path:
    directory = job.directory
    log.info("needs its %s: %s", role, directory)
    if directory not in _DIVERGED:
        record = run(job, role, wait)
        if record["status"] == "done":
            return directory
        if record["error"]["type"] != "NonFiniteLoss":  # another cause may be gone the next time
            first, *more = record["error"]["message"].splitlines()  # which the log has just told
            raise KdrunError(f"its {role} failed: {directory}: {first}{f' (and {len(more)} more)' if more else ''}")
        _DIVERGED[directory] = record["error"]["message"]
    raise KdrunError(f"its {role} failed: {directory}: {_DIVERGED[directory]}")


_DIVERGED: dict[Path, str] = {}  # prerequisites that diverged in this process: they would again


def _keep_split(assembly: Assembly, record: Record) -> None:
    """Write the split's indices beside the runs (one file for each split), and refuse to go on with another split."""
    job, arrays, split = assembly.job, assembly.arrays, assembly.split
    found = split.summary(arrays.train_labels, arrays.num_classes)
    old = record["split"].get("hash")
    if old is not None and old != found["hash"] and (job.directory / "checkpoint").exists():
        raise KdrunError(
            f"{job.directory}: its checkpoint was trained on split {old}, the data now gives {found['hash']}"
        )
    here = world()
    if odd := here.alike(f"split of {job.key}", found["hash"]):
        told = ", ".join(f"{digest} on rank {rank}" for rank, digest in odd.items())
        raise KdrunError(f"{job.directory}: the data give another split on each machine: {told}")
    if here.first:
        keep_split(split, {"dataset": record["dataset"], **found}, job.outputs)
    record["split"] = found
    if isinstance(record["num_labels"], str):  # so many of each class, or a share
        record["num_labels"] = len(split.labeled)


def _keep_logits(assembly: Assembly, record: Record) -> None:
    """What the teacher says of stored views, once for all runs; its figures go into the record."""
    refuse_features(assembly.config, assembly.method.needed.of_teacher)
    kept = assembly.keep_logits()
    if kept is not None:
        record["artifacts"]["teacher_outputs"] = kept
        log.info("the teacher's logits of stored views: %s", kept)


def _before(assembly: Assembly, record: Record, fresh: bool) -> None:
    """What the method does before its first step; its figures go into the record, its values to the batches."""
    keys, loader = record["requires"], assembly.loader
    runs = {
        role: Required(directory, read_record(directory) or {}, keys[role])
        for role, directory in assembly.required.items()
    }
    start = Start(
        required=runs, pool=assembly.pool(partial(_warn, record)), batches=loader.batch,
        first=assembly.clock.total_steps, fresh=fresh,
    )  # fmt: skip
    made = assembly.method.before(start)
    record["artifacts"] |= {name: figures for name, (_, figures) in made.items()}
    if fresh and assembly.teacher is not None:
        asked = AskedTeacher(assembly)
        assembly.method.before_terms(asked)
        record["artifacts"] |= asked.figures
    loader.give({name: values.to(assembly.device) for name, (values, _) in made.items()})


def _describe(assembly: Assembly, record: Record, operations: Operations) -> None:
    """What is about to be trained, into the record and the log."""
    config, method, device, split = assembly.config, assembly.method, assembly.device, assembly.split
    averaged, steps = config.schedule.ema_decay is not None, assembly.clock.total_steps
    nets = {
        name: {"model": net.name, "num_params": net.num_params, "flops": flops_of(net, assembly.size), "ema": averaged}
        for name, net in method.kept().items()
    }
    record.update(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(), steps=steps if config.needs.trains else 0, headline=method.headline,
        nets=nets,
    )  # fmt: skip
    if world().size > 1:
        record.update(backend=BACKENDS[device.type], batch_norm=config.schedule.batch_norm)
    work = f"{steps} steps of {config.schedule.batch_size}" if method.needed.trains else "nothing to train"
    sizes = [f"{n['model']} {n['num_params']:,} parameters" for n in nets.values()]
    if own := sum(p.numel() for name, p in method.named_parameters() if not name.startswith(BESIDE)):
        sizes.append(f"{own:,} parameters of the method's own")
    log.info(
        "%s on %s: %d labeled of %d, %s",
        config.method.name, config.dataset.name, len(split.labeled), split.num_train, ", ".join([work, *sizes]),
    )  # fmt: skip
    if not config.debug.on and (line := evaluation_cost(assembly, operations)) is not None:
        log.info("%s", line)


def _fit(assembly: Assembly, record: Record, job_type: str, still_ours: Callable[[], None]) -> None:
    """Train, evaluate, save; the results go into the record."""
    job, method, loader, here = assembly.job, assembly.method, assembly.loader, world()
    tracking = make_tracking(job, job_type) if here.first else Tracking()
    failed = True
    try:
        loop, progress = None, Progress()
        if method.needed.trains:
            hidden = assembly.labels.to(assembly.device)
            loop = Loop(
                method, loader, assembly.evaluator, assembly.clock, job.directory, tracking, job.key, still_ours,
                hidden, partial(_before, assembly, record),
            )  # fmt: skip
        with loop.stopped_well() if loop is not None else nullcontext():
            progress = loop.run() if loop is not None else progress
            if loop is not None and job.config.debug.repeat_batch:
                _warn(record, *told_of_one_batch(loop.log.lines()))
            started = time.perf_counter()
            logits: Logits = {} if loop is None else loop.final_logits()
            here.once(partial(_save_results, assembly, record, loop, logits, still_ours))
        progress.seconds["eval"] += time.perf_counter() - started
        progress.seconds["total"] += time.perf_counter() - started
        record.update(best_on_val=progress.best_on_val, seconds={k: round(v, 3) for k, v in progress.seconds.items()})
        if (each := assembly.evaluator.seconds_per_image) is not None and loop is not None:
            record["seconds"]["per_image"] = float(f"{each:.3g}")
        failed = False
    finally:
        loader.close()
        tracking.finish(record, failed, assembly.arrays.class_names)


def _save_results(
    assembly: Assembly, record: Record, loop: Loop | None, logits: Logits, still_ours: Callable[[], None]
) -> None:
    """Final figures, predictions and weights, of logits of all that was trained."""
    job, method, evaluator = assembly.job, assembly.method, assembly.evaluator
    step = 0 if loop is None else loop.progress.step
    _ask_teacher(assembly, record, logits)
    if loop is not None:
        refuse_networks(method.kept(), step)
    metrics = {**evaluator.final_metrics(logits), **choice_metrics(method)}
    refuse_metrics(metrics, step)
    _warn(record, *evaluator.warnings(logits, method.needed))
    if loop is not None and not job.config.debug.on:
        images = {split: len(index) for split, (_, index, _) in evaluator.splits.items()}
        _warn(record, *results_remarks(metrics, method.headline, assembly.arrays.num_classes, images))
    still_ours()
    evaluator.save(job.directory / "predictions", logits)
    if loop is not None:
        _save_networks(method, loop, job.directory)
    files = results(job.directory, record["nets"])
    record.update(metrics=metrics, files=files if loop is None else {**files, METRICS: loop.log.sum()})


def _ask_teacher(assembly: Assembly, record: Record, logits: Logits) -> None:
    """Its logits of the evaluation images join the others, and the record says where they are kept."""
    found, kept = assembly.teacher_logits(assembly.evaluator)
    logits.update(found)
    if kept is not None:
        record["artifacts"]["teacher_evaluation"] = kept


def _warn(record: Record, *lines: str) -> None:
    """Say lines in the log and keep them in the record."""
    for line in lines:
        say(logging.WARNING, line)
        record["warnings"].append(line)


def _save_networks(method: Method[Any], loop: Loop, directory: Path) -> None:
    from safetensors.torch import save

    loop.save_networks()
    with loop.ema.applied() if loop.ema is not None else nullcontext():
        own = apart({name: value for name, value in method.state_dict().items() if not name.startswith(BESIDE)})
    if own:
        write_bytes(directory / "method.safetensors", save(own))
