"""Classify image files by a finished run: class, confidence and the next classes of each.

kdrun predict run=outputs/runs/... images=photos                  any folder, nested; into predictions.csv
kdrun predict run=0123456789ab images=photo.jpg out=photo.csv     a run by its key; top=5 classes
kdrun predict run=... images=photos images=more images=a.jpg      several; files are called as they were given
kdrun predict run=... 'images=photos/2024-*.jpg'                  what matches a pattern
kdrun predict run=... images=photos overwrite=true                over a file `out` that is there
kdrun predict run=... images=photos checkpoint=best_on_val        the weights that were best on validation images; else
                                                                  those of the last step, which tables tell of
kdrun predict run=... images=photos out=photos.jsonl              or .parquet (extra hf)
kdrun predict run=... images=photos skip_unreadable=true          no rows for what cannot be decoded
kdrun predict run=... images=photos predictor=ensemble batch=256 device=cuda threads=4
kdrun predict run=... images=posters max_pixels=200000000         of a file; more is unreadable
A file that cannot be decoded has a row of its own that says why in `unreadable`. calibrated_confidence is empty where
too few validation images told the temperature. In CSV, a name that a spreadsheet would take for a formula has an
apostrophe before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from kdrun.config.run import ExecutionConfig
from kdrun.core.errors import DataError, KdrunError
from kdrun.core.files import atomic_path, place_for
from kdrun.core.later import later
from kdrun.core.progress import metered
from kdrun.core.schema import Schema, build, from_arguments
from kdrun.data.images import decoded, list_images, passed_over
from kdrun.data.types import Images
from kdrun.results.rows import refuse_ending, written_rows
from kdrun.runs.layout import Checkpoint
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
    images: list[str]
    """Folders, files and patterns such as photos/*.jpg; give the key once for each."""
    out: str = "predictions.csv"
    """The ending tells the format: .csv, .jsonl or .parquet."""
    overwrite: bool = False
    """Whether a file that is there is written over."""
    checkpoint: Checkpoint = "last"
    """The weights of the last step, or of the best evaluation on validation images."""
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
    """Whether what cannot be decoded has no row."""
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
    refuse_ending(out, "out")
    files, told = _files(options.images)
    run = open_record(options.run, options.outputs)
    device = device_of(options.device, "device")
    trained = open_trained(FinishedRun(*run, options.checkpoint), options.predictor, options.size)
    if out.exists() and not options.overwrite:  # the last mistake there can be, not one that hides others
        raise KdrunError(f"out: {out}: is there already; give another name, or overwrite=true")
    use_machine(machine.device, machine.threads)
    with torch.no_grad():
        text = _written(out, files, trained, device, options)
    return "\n".join([*told, text])


def _files(given: Sequence[str]) -> tuple[dict[Path, str], list[str]]:
    """The image files in order, each with the name that it is told by, and lines on what was passed over.

    Where one folder is given, names are told below it; else as they were given.
    """
    files: dict[str, tuple[Path, str]] = {}
    lines: list[str] = []
    count = 0
    asked = [Path(text).expanduser() for text in given]
    places = [place for one in asked for place in _matching(one)]
    for place in places:
        if not place.is_dir() and not place.is_file():
            what = "nothing matches" if has_magic(str(place)) else "no such file or folder"
            raise DataError(f"images: {place}: {what}")
        passed: list[Path] = []
        folder, paths = (place, list_images(place, "images", passed)) if place.is_dir() else (place.parent, [place])
        lines += passed_over(passed, folder)
        for path in paths:
            name = path.relative_to(folder) if places == asked and len(places) == 1 else path
            files.setdefault(os.path.abspath(path), (path, name.as_posix()))
        count += len(paths)
    if again := count - len(files):
        lines.append(f"images: {again} named twice, told once")
    return dict(files.values()), lines


def _matching(place: Path) -> list[Path]:
    """What a pattern stands for, where a shell has left it as it is; a path that is none, itself."""
    found = [] if place.exists() else [Path(path) for path in sorted(glob(str(place)))]
    return found or [place]


def _written(out: Path, files: dict[Path, str], trained: Trained, device: torch.device, options: Options) -> str:
    config = trained.run.config
    classifier = to_device(trained.classifier, config, device)
    top = min(options.top, len(trained.shown.class_names))
    columns: dict[str, type] = {"path": str, "class": str, "confidence": float, "calibrated_confidence": float}
    for k in range(2, top + 1):
        columns |= {f"class_{k}": str, f"confidence_{k}": float}
    columns |= {} if options.skip_unreadable else {"unreadable": str}
    unreadable: list[str] = []
    sums, count = [0.0, 0.0], 0
    with atomic_path(out) as temporary, written_rows(temporary, out.suffix, columns) as write:
        for part, pixels in _batches(list(files), trained, options):
            rows: Iterator[dict[str, Any]] = iter(())
            if pixels is not None:
                with autocast(device, config.schedule.precision):  # as the run evaluates
                    rows = _rows(classifier(send(pixels, device)).cpu().double(), trained, top)
            for path, problem in part:
                if problem is None:
                    row = next(rows)
                    sums = [sums[0] + row["confidence"], sums[1] + (row["calibrated_confidence"] or 0.0)]
                    write({"path": files[path], **row})
                    count += 1
                    continue
                unreadable.append(problem)
                if not options.skip_unreadable:
                    write({"path": files[path], "unreadable": problem.removeprefix(f"{path} (").removesuffix(")")})
        _refuse(unreadable, count, options)
    return _report(out, trained, count, sums, unreadable, options)


def _rows(logits: Tensor, trained: Trained, top: int) -> Iterator[dict[str, Any]]:
    """(B, C) -> of each image its columns."""
    names, temperature = trained.shown.class_names, trained.temperature
    shares, labels = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    calibrated = (logits / (temperature or 1.0)).softmax(1).amax(1).tolist()
    for share, label, scaled in zip(shares[:, :top].tolist(), labels[:, :top].tolist(), calibrated, strict=True):
        row: dict[str, Any] = {"calibrated_confidence": None if temperature is None else round(scaled, 6)}
        for end, p, k in zip(["", *(f"_{k}" for k in range(2, top + 1))], share, label, strict=True):
            row |= {f"class{end}": names[k], f"confidence{end}": round(p, 6)}
        yield row


def _batches(
    paths: list[Path], trained: Trained, options: Options
) -> Iterator[tuple[list[tuple[Path, str | None]], Tensor | None]]:
    """Files in their order, each with what is wrong with it, and the pixels of those that can be read.

    Pixels are (B, C, H, W) uint8, of `batch` images; None: no image.
    """
    shown = trained.shown
    height, width = shown.size
    if height != width:
        raise KdrunError(f"images: files go with square images only, those of this run are {height}x{width}")
    part: list[tuple[Path, str | None]] = []
    images: list[Images] = []
    how = replace(shown.how, most=options.max_pixels or shown.how.most, exif=options.exif or shown.how.exif)
    found = zip(paths, decoded(paths, height, shown.crop, how), strict=True)
    for path, image in metered(found, "predicting", len(paths)):
        if isinstance(image, str):
            part.append((path, image))
        else:
            part.append((path, None))
            images.append(image)
        if len(images) == options.batch:
            yield part, shown.pixels(np.stack(images))
            part, images = [], []
    if part:
        yield part, shown.pixels(np.stack(images)) if images else None


def _refuse(unreadable: list[str], count: int, options: Options) -> None:
    """Refuse where there is not one image."""
    if count:
        return
    lines = [f"images: unreadable image {problem}" for problem in unreadable[:MOST]]
    if len(unreadable) > MOST:
        lines.append(f"images: and {len(unreadable) - MOST} more of them")
    if len(unreadable) > 1:
        lines.append(f"images: {', '.join(options.images)}: not one readable image")
    raise DataError(*lines)


def _report(out: Path, trained: Trained, count: int, sums: list[float], unreadable: list[str], options: Options) -> str:
    left = "left out" if options.skip_unreadable else "without a class"
    lines = [f"unreadable, {left}: {problem}" for problem in unreadable[:MOST]]
    if len(unreadable) > MOST:
        lines.append(f"... and {len(unreadable) - MOST} more of them")
    if trained.shown.unnamed:
        lines.append(f"classes are numbers: {trained.shown.unnamed}")
    confidence, calibrated = (total / count for total in sums)
    if trained.temperature is None:
        lines.append(f"warning: no calibrated_confidence: {trained.uncalibrated}")
        told = f"mean confidence {confidence:.4f}"
    else:
        told = f"mean confidence {confidence:.4f}, calibrated {calibrated:.4f} (temperature {trained.temperature:.4f})"
    beside = f", {len(unreadable)} unreadable" if unreadable else ""
    return "\n".join([*lines, f"{count} images{beside}; {trained.name}, {trained.run.told}: {told}", f"wrote {out}"])
