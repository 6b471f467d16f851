"""Which image files a folder has, and their pixels at one size."""

import math
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdrun.config.dataset import Reading
from kdrun.core.errors import DataError, allowed
from kdrun.core.machine import cores
from kdrun.core.suffixes import is_image, suffix_of
from kdrun.data.reading import PLAIN, read_rgb
from kdrun.data.types import Images

if TYPE_CHECKING:
    from PIL.Image import Image


MOST_RESIZED = 2**24
"""Pixels of a resized whole, 50 MB as RGB, above which an image is cropped first: a thin one of 65000 x 1 at 224 pixels
would have 3 billion."""
MARGIN = 3.0  # pixels that a bicubic filter reads on either side, at the scale of the smaller image, and one to spare


def list_classes(
    folder: Path,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    key: str = "dataset.path",
    nested: bool = False,
    passed: list[Path] | None = None,
) -> tuple[list[str], list[Path], list[int]]:
    """Class names (sorted folder names), image files (at any depth) and their class numbers.

    Args:
        only: the classes to take; none given: all.
        without: folders that are no classes.
        key: the config key to blame.
        nested: each folder that itself holds images is a class, called by its path, e.g. `animals/cat`.
        passed: is given the files that are no images, and the images that are in no class.

    Links are followed. Hidden files and folders, and files that are no images (`kdrun.core.suffixes`), do not count.

    Raises:
        DataError: no such folder, no classes, a class without images, or a link that leads nowhere or back (named).
    """
    layout = f"expected {folder}/<class>/<image>"
    if not folder.is_dir():
        raise DataError(f"{key}: {folder}: no such folder; {layout}")
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    try:
        for entry in _visible(folder, key):
            if not entry.is_dir():
                others.append(Path(entry.path))
            elif only and not nested and entry.name not in only:
                found[entry.name] = []  # not asked for, and not looked into
            elif entry.name not in without:
                images = _images(entry.path, key, (os.path.realpath(folder),), others)
                if nested:
                    for image in images:
                        found.setdefault(image.parent.relative_to(folder).as_posix(), []).append(image)
                else:
                    found[entry.name] = list(images)
    except OSError as error:
        raise DataError(f"{key}: {error.filename}: cannot be read ({error.strerror})") from None
    if not found:
        raise DataError(f"{key}: {folder}: no class folders; {layout}")
    if absent := sorted(set(only) - set(found)):
        raise DataError(f"dataset.classes: {folder} has no {absent[0]}{allowed(absent[0], found)}")
    names = sorted(name for name in found if not only or name in only)
    if empty := [name for name in names if not found[name]]:
        told = "the class has no images, by their names or by the first bytes of files without an ending"
        raise DataError(*(f"{key}: {folder / name}: {told}" for name in empty))
    if passed is not None:
        passed += others
    paths = [path for name in names for path in found[name]]
    return names, paths, [number for number, name in enumerate(names) for _ in found[name]]


def list_images(folder: Path, key: str, passed: list[Path] | None = None) -> list[Path]:
    """All image files of a folder, at any depth, sorted. Raises DataError, which blames `key`, if there is none.

    Args:
        passed: is given the files that are none.
    """
    try:
        found = list(_images(folder, key, (), passed))
    except OSError as error:
        raise DataError(f"{key}: {error.filename}: cannot be read ({error.strerror})") from None
    if not found:
        raise DataError(f"{key}: {folder}: no images (.bmp, .gif, .jpg, .png, .tif, .webp and what else Pillow opens)")
    return found


def passed_over(files: Sequence[Path], folder: Path) -> list[str]:
    """A line that says what was passed over, or none."""
    if not files:
        return []
    kinds = Counter(suffix_of(path.name) or "without an ending" for path in files)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
    verb = "file is no image or in no class folder and was" if len(files) == 1 else (
        "files are no images or in no class folder and were")  # fmt: skip
    named = ", ".join(name_below(path, folder) for path in files[:3])
    return [f"{folder}: {len(files)} {verb} passed over ({told}), e.g. {named}"]


def name_below(path: Path, folder: Path) -> str:
    """As lines and records name it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _visible(folder: str | Path, key: str) -> "list[os.DirEntry[str]]":
    """By name. What an entry is, the folder knows: a file is asked only where it is a link."""
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):  # nobody would miss it
            raise DataError(f"{key}: {entry.path}: a link that leads nowhere; remove or repair it")
    return entries


def _images(folder: str | Path, key: str, above: tuple[str, ...], passed: list[Path] | None = None) -> Iterator[Path]:
    """In the order of their names, folder by folder."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{key}: {folder}: a link back to {real}, which holds it; remove it")
    for entry in _visible(folder, key):
        if entry.is_dir():
            yield from _images(entry.path, key, (*above, real), passed)
        elif entry.is_file() and is_image(entry.path):
            yield Path(entry.path)
        elif passed is not None:
            passed.append(Path(entry.path))


def decode(
    paths: Sequence[Path], size: int, crop: str = "center", how: Reading = PLAIN
) -> tuple[Images, dict[int, str]]:
    """(M, size, size, 3) uint8 of the files that can be read, and what is wrong with the others, by position."""
    try:
        out = np.empty((len(paths), size, size, 3), np.uint8)
    except MemoryError as error:
        raise DataError(f"dataset.size: {len(paths)} images of {size}x{size} pixels do not fit ({error})") from None
    unreadable: dict[int, str] = {}
    for position, image in enumerate(decoded(paths, size, crop, how)):
        if isinstance(image, str):
            unreadable[position] = image
        else:
            out[position - len(unreadable)] = image
    return out[: len(paths) - len(unreadable)], unreadable


def decoded(
    paths: Sequence[Path], size: int, crop: str = "center", how: Reading = PLAIN, workers: int = 0, ahead: int = 0
) -> Iterator[Images | str]:
    """Each image in turn as (size, size, 3) uint8, or `path (what is wrong)`; threads work ahead.

    Args:
        how: see `read_rgb`.
        workers: threads; 0: as many as cores.
        ahead: images that are decoded before they are asked for, at the least.
    """
    workers = workers or cores()
    pool = ThreadPoolExecutor(workers, "decode")
    try:
        queue: deque[Future[Images | str]] = deque()
        for path in paths:
            queue.append(pool.submit(_decoded, path, size, crop, how))
            if len(queue) > max(8 * workers, ahead):
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(path: Path, size: int, crop: str, how: Reading) -> Images | str:
    rgb = read_rgb(path, how)
    return rgb if isinstance(rgb, str) else fit(rgb, size, crop)


def fit(rgb: "Image", size: int, crop: str) -> Images:
    """center: short side resized (bicubic, antialiased), then the center square; square: both sides resized.

    Where the resized whole would have more than `MOST_RESIZED` pixels, only what becomes the square is resized.
    """
    from PIL import Image

    if crop == "square":
        return np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC))
    scale = size / min(rgb.size)
    wide, high = (max(round(side * scale), size) for side in rgb.size)
    left, top = (wide - size) // 2, (high - size) // 2
    if wide * high > MOST_RESIZED:
        return np.asarray(_resized_part(rgb, (wide, high), (left, top), size))
    rgb = rgb.resize((wide, high), Image.Resampling.BICUBIC)
    return np.asarray(rgb.crop((left, top, left + size, top + size)))


def _resized_part(rgb: "Image", whole: tuple[int, int], corner: tuple[int, int], size: int) -> "Image":
    """A square of side `size` of the image resized to `whole` (width, height), at `corner` (left, top) of that."""
    from PIL import Image

    cut: list[tuple[int, int]] = []  # of the source, in either direction: first pixel, and first behind
    box: list[tuple[float, float]] = []  # what becomes the square, counted from there
    for side, full, start in zip(rgb.size, whole, corner, strict=True):
        scale = side / full
        first, last = start * scale, (start + size) * scale
        margin = MARGIN * max(scale, 1.0)
        low, high = max(math.floor(first - margin), 0), min(math.ceil(last + margin), side)
        cut.append((low, high))
        box.append((max(first - low, 0.0), min(last - low, high - low)))
    (left, right), (top, bottom) = cut
    part = rgb.crop((left, top, right, bottom))
    (x, width), (y, height) = box
    return part.resize((size, size), Image.Resampling.BICUBIC, (x, y, width, height))
