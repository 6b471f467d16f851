"""Classify image files by a finished run: a CSV with class, confidence, and the next classes.

kdrun predict run=outputs/runs/... images=photos                  any folder, nested; into predictions.csv
kdrun predict run=0123456789ab images=photo.jpg out=photo.csv     a run by its key; top=5 classes
kdrun predict run=... images=photos skip_unreadable=true          leaves out what cannot be decoded
kdrun predict run=... images=photos predictor=ensemble batch=256 device=cuda threads=4
kdrun predict run=... images=posters max_pixels=200000000         of a file; more is unreadable
calibrated_confidence is empty where too few validation images told the temperature. A name that a spreadsheet would
take for a formula has an apostrophe before it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from kdrun.config.run import ExecutionConfig
from kdrun.core.errors import DataError, KdrunError
from kdrun.core.files import atomic_path, place_for
from kdrun.core.later import later
from kdrun.core.schema import Schema, build, from_arguments
from kdrun.data.images import decoded, list_images, passed_over
from kdrun.data.types import Images
from kdrun.results.formats import csv_cell
from kdrun.runs.layout import place_of
from kdrun.runs.record import open_record

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdrun.core.device import autocast, device_of, send, use_machine
    from kdrun.runs.finished import FinishedRun
    from kdrun.runs.trained import Trained, open_trained
    from kdrun.training.assembly import to_device
else:
    torch = later("torch")
    autocast, device_of, send, use_machine = later("kdrun.core.device", "autocast", "device_of", "send", "use_machine")
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")
    open_trained = later("kdrun.runs.trained", "open_trained")
    to_device = later("kdrun.training.assembly", "to_device")

MOST = 20  # unreadable files that are named


class Options(Schema):
    """`run=<directory or key> images=<folder or file>` and these."""

    run: str
    images: str
    out: str = "predictions.csv"
    overwrite: bool = False
    predictor: str | None = None
    """What the run evaluated, e.g. student_2, ensemble or ce_head; null: its headline."""
    top: int = Field(5, ge=1)
    """Classes an image has in the file, the most probable first."""
    batch: int = Field(64, ge=1)
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=1)
    """Side of the run's own images, where its dataset is not on this machine."""
    skip_unreadable: bool = False
    max_pixels: int | None = Field(None, ge=1)
    """Of a file; null: as the run's dataset has it."""
    exif: Literal["upright", "stored"] | None = None
    """Whether photos are turned as they say; null: as the run's dataset of own files has it, else upright."""
    outputs: str = "outputs"
    """Where a run key is looked for."""


def main(arguments: Sequence[str]) -> str:
    """What was written.

    Raises:
        ConfigError: an unknown key or predictor, or a value that is not allowed.
        KdrunError: no finished run, no images, unreadable ones, or a file that is there already.
    """
    options = from_arguments(Options, arguments)
    machine = build(ExecutionConfig, {"device": options.device, "threads": options.threads}, "")
    out = place_for(options.out, "out")
    if out.exists() and not options.overwrite:
        raise KdrunError(f"out: {out}: is there already; give another name, or overwrite=true")
    passed: list[Path] = []
    paths, folder = _files(Path(options.images).expanduser(), passed)
    run = open_record(place_of(options.run, options.outputs))
    device = device_of(options.device, "device")
    trained = open_trained(FinishedRun(*run), options.predictor, options.size)
    use_machine(machine.device, machine.threads)
    with torch.no_grad():
        text = _written(out, paths, folder, trained, device, options)
    return "\n".join([*passed_over(passed, folder), text])


def _files(images: Path, passed: list[Path]) -> tuple[list[Path], Path]:
    """The image files in the order of their names, and the folder that their names are told below."""
    if images.is_dir():
        return list_images(images, "images", passed), images
    if not images.is_file():
        raise DataError(f"images: {images}: no such file or folder")
    return [images], images.parent


def _written(
    out: Path, paths: list[Path], folder: Path, trained: Trained, device: torch.device, options: Options
) -> str:
    config, class_names = trained.run.config, trained.shown.class_names
    classifier = to_device(trained.classifier, config, device)
    top = min(options.top, len(class_names))
    unreadable: list[str] = []
    sums, count = (0.0, 0.0), 0
    with atomic_path(out) as temporary:
        # a name that is no text goes out as the bytes that it is
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            more = [f"{name}_{k}" for k in range(2, top + 1) for name in ("class", "confidence")]
            writer.writerow(["path", "class", "confidence", "calibrated_confidence", *more])
            for names, pixels in _batches(paths, trained, options, unreadable):
                with autocast(device, config.schedule.precision):  # as the run evaluates
                    logits = classifier(send(pixels, device)).cpu().double()
                calibrated = (logits / (trained.temperature or 1.0)).softmax(1).amax(1).tolist()
                values, labels = logits.softmax(1).sort(dim=1, descending=True, stable=True)
                best = zip(names, values[:, :top].tolist(), labels[:, :top].tolist(), calibrated, strict=True)
                for path, shares, classes, scaled in best:
                    first, *rest = ((class_names[k], f"{p:.6f}") for k, p in zip(classes, shares, strict=True))
                    told = "" if trained.temperature is None else f"{scaled:.6f}"
                    row = [path.relative_to(folder).as_posix(), *first, told]
                    writer.writerow(map(csv_cell, [*row, *(part for pair in rest for part in pair)]))
                    sums = sums[0] + shares[0], sums[1] + scaled
                count += len(names)
        _refuse(unreadable, count, options)
    return _report(out, trained, count, sums, unreadable)


def _batches(
    paths: list[Path], trained: Trained, options: Options, unreadable: list[str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """The files that can be read, `batch` at once, as (B, C, H, W) uint8; into `unreadable` what is wrong with others.

    Where unreadable files are not left out, nothing more is given after the first, and the rest is only looked at.
    """
    from tqdm import tqdm

    shown = trained.shown
    height, width = shown.size
    if height != width:
        raise KdrunError(f"images: files go with square images only, those of this run are {height}x{width}")
    names: list[Path] = []
    images: list[Images] = []
    how = replace(shown.how, most=options.max_pixels or shown.how.most, exif=options.exif or shown.how.exif)
    found = zip(paths, decoded(paths, height, shown.crop, how), strict=True)
    for path, image in tqdm(found, total=len(paths), desc="predicting", unit="img", disable=None, leave=False):
        if isinstance(image, str):
            unreadable.append(image)
        elif options.skip_unreadable or not unreadable:
            names.append(path)
            images.append(image)
        if len(names) == options.batch:
            yield names, shown.pixels(np.stack(images))
            names, images = [], []
    if names:
        yield names, shown.pixels(np.stack(images))


def _refuse(unreadable: list[str], count: int, options: Options) -> None:
    lines = [f"images: unreadable image {problem}" for problem in unreadable[:MOST]]
    if len(unreadable) > MOST:
        lines.append(f"images: and {len(unreadable) - MOST} more of them")
    if unreadable and not options.skip_unreadable:
        lines[-1] += f"; skip_unreadable=true goes on without these {len(unreadable)}"
        raise DataError(*lines)
    if not count:
        raise DataError(*lines, f"images: {options.images}: not one readable image")


def _report(out: Path, trained: Trained, count: int, sums: tuple[float, float], unreadable: list[str]) -> str:
    lines = [f"unreadable, left out: {problem}" for problem in unreadable[:MOST]]
    if len(unreadable) > MOST:
        lines.append(f"... and {len(unreadable) - MOST} more of them")
    if trained.shown.gone is not None and trained.run.config.dataset.class_names is None:
        lines.append(f"classes are numbers: {trained.shown.gone}")
    confidence, calibrated = (total / count for total in sums)
    if trained.temperature is None:
        lines.append(f"warning: no calibrated_confidence: {trained.uncalibrated}")
        told = f"mean confidence {confidence:.4f}"
    else:
        told = f"mean confidence {confidence:.4f}, calibrated {calibrated:.4f} (temperature {trained.temperature:.4f})"
    left = f", {len(unreadable)} unreadable" if unreadable else ""
    return "\n".join([*lines, f"{count} images{left}; {trained.name}: {told}", f"wrote {out}"])
