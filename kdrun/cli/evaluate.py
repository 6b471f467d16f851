"""Evaluate a finished run again, without training; into <run>/evaluations/<name>.json.

kdrun evaluate run=outputs/runs/...                         today's metrics, from its kept predictions
kdrun evaluate run=... amend=true                            and into its record what that does not have yet
kdrun evaluate run=... dataset=svhn dataset.root=data        its networks on other test images
kdrun evaluate run=... evaluate.corruptions=CIFAR-10-C       on corrupted ones
kdrun evaluate run=... evaluate.sets=[imagenet_v2] evaluate.root=data
kdrun evaluate run=... method.<key>=<value> name=half        with another setting of the method; what it
                                                             searches, it searches on validation images
kdrun evaluate run=... dataset=svhn execution.device=cuda
kdrun evaluate run=... checkpoint=best_on_val                the weights that were best on validation images; else
                                                             those of the last step
The record stays as it is, but for amend=true.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from kdrun.config.compose import Composer
from kdrun.config.dataset import DatasetConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError, KdrunError, allowed
from kdrun.core.files import write_json
from kdrun.core.later import later
from kdrun.core.progress import shown
from kdrun.core.schema import Schema, from_arguments
from kdrun.runs.layout import Checkpoint
from kdrun.runs.metric import ENOUGH
from kdrun.runs.record import Record, finite, open_record

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdrun.data.arrays import Arrays
    from kdrun.data.load import load_dataset
    from kdrun.data.residency import place
    from kdrun.data.views.center import Center
    from kdrun.runs.finished import FinishedRun
    from kdrun.training.assembly import Assembly
    from kdrun.training.corruptions import Corruptions, summary
    from kdrun.training.evaluator import Evaluator, choice_metrics
    from kdrun.training.shifted import shifted_sets
else:
    torch = later("torch")
    load_dataset = later("kdrun.data.load", "load_dataset")
    place = later("kdrun.data.residency", "place")
    Center = later("kdrun.data.views.center", "Center")
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")
    Assembly = later("kdrun.training.assembly", "Assembly")
    Corruptions, summary = later("kdrun.training.corruptions", "Corruptions", "summary")
    Evaluator, choice_metrics = later("kdrun.training.evaluator", "Evaluator", "choice_metrics")
    shifted_sets = later("kdrun.training.shifted", "shifted_sets")

STORED = "stored"
MOST = 200  # bytes of a name; the temporary name of its file is longer
WORDS = ("dataset", "evaluate", "method", "execution")


class Options(Schema):
    """`run=<directory> [name=] [checkpoint=] [amend=true]`, and keys of dataset, evaluate, method and execution."""

    run: str
    name: str | None = Field(None, pattern=r"^[\w.+-]+$")
    """Of the file; null: what it is about."""
    checkpoint: Checkpoint = "last"
    """The weights of the last step, or of the best evaluation on validation images."""
    amend: bool = False
    """Today's metrics that the record lacks go into it; only for what the run itself was evaluated on."""


def main(arguments: Sequence[str]) -> str:
    """What was written, and the metrics.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
        KdrunError: no finished run, or data that its networks do not take.
    """
    overrides = [a for a in arguments if a.partition("=")[0].split(".")[0] in WORDS]
    options = from_arguments(Options, [a for a in arguments if a not in overrides])
    directory, record = open_record(options.run)
    execution = [a for a in overrides if a.startswith("execution.")]
    asked = [a for a in overrides if a not in execution]
    about = [a.partition("=")[0] if "/" in a else a.replace("=", "-") for a in asked]
    about += [] if options.checkpoint == "last" else [options.checkpoint]
    name = options.name or "+".join(about) or STORED
    if (length := len(os.fsencode(name))) > MOST:
        raise ConfigError(f"name: {name[:60]}… has {length} bytes, and a file takes {MOST}; give name=<shorter>")
    if not asked and options.checkpoint == "last":
        if execution:
            raise ConfigError(f"{execution[0]}: stored predictions need no machine; ask for something else too")
        run = FinishedRun(directory, record)
        return _report(run, name, asked, stored_metrics(run), options.amend)
    if options.amend:
        other = asked[0] if asked else f"checkpoint={options.checkpoint}"
        raise ConfigError(f"amend: {other}: this is not what the run was evaluated on; leave amend out")
    changed, typed = _with_method(record, asked), _config_of(record, asked, execution)
    run = FinishedRun(directory, record, options.checkpoint)
    with shown(typed.execution.progress):
        metrics = _metrics_of(replace(run, record=changed), typed, asked)
    return _report(run, name, asked, metrics, False)


def stored_metrics(run: FinishedRun) -> dict[str, float]:
    """All metrics in closed form, as they are defined today, from the predictions that the run kept."""
    logits, splits = {}, {}
    for name in run.predicted:
        split, _, net = name.partition("-")
        logits[split, net], target = run.predictions(split, net)
        splits[split] = (torch.empty(0), torch.arange(len(target)), target)
    if not logits:
        raise KdrunError(f"{run.directory}: it has kept no predictions")
    return Evaluator(splits, 1).final_metrics(logits)


def _metrics_of(run: FinishedRun, typed: RunConfig, asked: Sequence[str]) -> dict[str, float]:
    assembly = Assembly.restored(run, typed.execution)
    config, arrays = assembly.config, assembly.arrays
    if any(a.startswith("dataset") for a in asked):
        arrays = _other_images(typed.dataset, arrays, run)
    height, width = arrays.train_images.shape[1:3]
    options = {**assembly.evaluation, "center": Center.of(config.views, (height, width))}

    def ask(evaluator: Evaluator) -> dict[tuple[str, str], Tensor]:
        return evaluator.logits(assembly.predict)

    if typed.evaluate.corruptions is not None:
        corruptions = Corruptions(typed.evaluate.corruptions, arrays.test_images.shape[1:], arrays.num_classes)
        return summary(corruptions.evaluate(ask, assembly.device, **options))
    if typed.evaluate.sets:
        found: dict[str, float] = {}
        for shifted in shifted_sets(typed.evaluate, config.dataset, arrays.class_names):
            found |= shifted.evaluate(ask, assembly.device, run.outputs, **options)
        return found

    splits = dict(assembly.evaluator.splits)
    if arrays is not assembly.arrays:
        _, test = place(arrays, assembly.device, config.dataset.resident, typed.execution.workers)
        labels = torch.from_numpy(arrays.test_labels).to(assembly.device)
        splits["test"] = test, torch.arange(len(labels), device=assembly.device), labels
    chooses = not asked or any(a.startswith("method.") for a in asked)  # on the run's own validation images
    if not chooses:
        splits.pop("val", None)
    evaluator = Evaluator(splits, **options)
    if "val" not in evaluator.splits:
        return evaluator.final_metrics(evaluator.logits(assembly.predict))
    logits = evaluator.settled(assembly.method)
    if assembly.teacher is not None:
        logits |= evaluator.logits(assembly.teacher.predict, "the teacher")
    return evaluator.final_metrics(logits) | choice_metrics(assembly.method)


def _config_of(record: Record, asked: Sequence[str], execution: Sequence[str]) -> RunConfig:
    """Defaults with what is asked for; the method is the run's own."""
    rest = [a for a in asked if not a.startswith("method.")]
    if bad := [a for a in rest if a.startswith("method=")]:
        raise ConfigError(f"{bad[0]}: the run's method stays; give keys of it, method.<key>=<value>")
    if not any(a.startswith("dataset=") for a in rest) and any(a.startswith("dataset.") for a in rest):
        rest = [f"dataset={record['dataset']}", *rest]
    with Composer() as composer:
        return composer.typed([*rest, *execution])


def _with_method(record: Record, asked: Sequence[str]) -> Record:
    """The record with other keys of the method; typing it again checks their values."""
    config = record["config"]
    method = dict(config["method"])
    for argument in (a for a in asked if a.startswith("method.")):
        key, _, value = argument.removeprefix("method.").partition("=")
        if key not in method or key == "name":
            raise ConfigError(f"method.{key}: unknown key{allowed(key, [k for k in method if k != 'name'])}")
        method[key] = yaml.safe_load(value)
    return {**record, "config": {**config, "method": method}}


def _other_images(dataset: DatasetConfig, own: Arrays, run: FinishedRun) -> Arrays:
    arrays = load_dataset(dataset, run.outputs)
    if arrays.num_classes != own.num_classes:
        raise KdrunError(f"dataset={dataset.name}: has {arrays.num_classes} classes, the run's {own.num_classes}")
    theirs, channels = arrays.test_images.shape[3], own.test_images.shape[3]
    if theirs != channels:
        raise KdrunError(f"dataset={dataset.name}: images have {theirs} channels, the run's {channels}")
    return arrays


def _report(run: FinishedRun, name: str, asked: Sequence[str], metrics: dict[str, float], amend: bool) -> str:
    path = run.directory / "evaluations" / f"{name}.json"
    found: dict[str, Any] = finite(metrics)
    made = {"checkpoint": run.checkpoint, "step": run.step}
    write_json(path, {"key": run.record["key"], **made, "asked": list(asked), "metrics": found})
    lines = [] if run.checkpoint == "last" else [run.told]
    lines += [f"{key} {value:.4f}" for key, value in found.items() if value is not None]
    if undefined := [key for key, value in found.items() if value is None]:
        lines.append(f"warning: {len(undefined)} figures are not finite, e.g. {undefined[0]}")
    count = (run.record.get("split") or {}).get("val") or 0
    if 0 < count < ENOUGH and any(key.endswith("/temperature") for key in found):
        lines.append(f"warning: temperatures, and scaled_ figures, are of {count} validation images; {ENOUGH} would do")
    if amend:
        with run.amended() as record:
            new = {key: value for key, value in found.items() if key not in record["metrics"]}
            record["metrics"] |= new
        lines.append(f"into the record: {len(new)} metrics that it did not have")
    return "\n".join([*lines, f"wrote {Path(path)}"])
