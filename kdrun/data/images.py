"""Getting and checking the files of published datasets, and decoding folders of images."""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdrun.config.dataset import EXTENSIONS, MOST_PIXELS
from kdrun.core.errors import DataError, allowed
from kdrun.core.files import reason, regular
from kdrun.core.machine import cores
from kdrun.data.types import Images

if TYPE_CHECKING:
    from PIL.Image import Image


MOST_RESIZED = 2**24
"""Pixels of a resized whole, 50 MB as RGB, above which an image is cropped first: a thin one of 65000 x 1 at 224 pixels
would have 3 billion."""
MARGIN = 3.0  # pixels that a bicubic filter reads on either side, at the scale of the smaller image, and one to spare


def list_classes(
    folder: Path, only: Sequence[str] = (), without: Sequence[str] = (), key: str = "dataset.path"
) -> tuple[list[str], list[Path], list[int]]:
    """Class names (sorted folder names), image files (at any depth) and their class numbers.

    Args:
        only: the classes to take; none given: all.
        without: folders that are no classes.
        key: the config key to blame.

    Links are followed. Hidden files and folders, and files that are no images by their extension, do not count.

    Raises:
        DataError: no such folder, no classes, a class without images, or a link that leads nowhere or back (named).
    """
    layout = f"expected {folder}/<class>/<image>"
    if not folder.is_dir():
        raise DataError(f"{key}: {folder}: no such folder; {layout}")
    paths: list[Path] = []
    labels: list[int] = []
    empty: list[str] = []
    try:
        names = [entry.name for entry in _visible(folder, key) if entry.is_dir() and entry.name not in without]
        if not names:
            raise DataError(f"{key}: {folder}: no class folders; {layout}")
        if absent := sorted(set(only) - set(names)):
            raise DataError(f"dataset.classes: {folder} has no {absent[0]}{allowed(absent[0], names)}")
        names = [name for name in names if name in only] if only else names
        for number, name in enumerate(names):
            found = list(_images(folder / name, key, (os.path.realpath(folder),)))
            if not found:
                suffixes = ", ".join(sorted(EXTENSIONS))
                empty.append(f"{key}: {folder / name}: the class has no images ({suffixes})")
            paths += found
            labels += [number] * len(found)
    except OSError as error:
        raise DataError(f"{key}: {error.filename}: cannot be read ({error.strerror})") from None
    if empty:
        raise DataError(*empty)
    return names, paths, labels


def list_images(folder: Path, key: str) -> list[Path]:
    """All image files of a folder, at any depth, sorted. Raises DataError, which blames `key`, if there is none."""
    try:
        found = list(_images(folder, key, ()))
    except OSError as error:
        raise DataError(f"{key}: {error.filename}: cannot be read ({error.strerror})") from None
    if not found:
        raise DataError(f"{key}: {folder}: no images ({', '.join(sorted(EXTENSIONS))})")
    return found


def _visible(folder: str | Path, key: str) -> "list[os.DirEntry[str]]":
    """By name. What an entry is, the folder knows: a file is asked only where it is a link."""
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path):  # nobody would miss it
            raise DataError(f"{key}: {entry.path}: a link that leads nowhere; remove or repair it")
    return entries


def _images(folder: str | Path, key: str, above: tuple[str, ...]) -> Iterator[Path]:
    """In the order of their names, folder by folder."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{key}: {folder}: a link back to {real}, which holds it; remove it")
    for entry in _visible(folder, key):
        if entry.is_dir():
            yield from _images(entry.path, key, (*above, real))
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
            yield Path(entry.path)


def decode(
    paths: Sequence[Path], size: int, crop: str = "center", most: int = MOST_PIXELS
) -> tuple[Images, dict[int, str]]:
    """(M, size, size, 3) uint8 of the files that can be read, and what is wrong with the others, by position."""
    try:
        out = np.empty((len(paths), size, size, 3), np.uint8)
    except MemoryError as error:
        raise DataError(f"dataset.size: {len(paths)} images of {size}x{size} pixels do not fit ({error})") from None
    unreadable: dict[int, str] = {}
    for position, image in enumerate(decoded(paths, size, crop, most)):
        if isinstance(image, str):
            unreadable[position] = image
        else:
            out[position - len(unreadable)] = image
    return out[: len(paths) - len(unreadable)], unreadable


def decoded(
    paths: Sequence[Path], size: int, crop: str = "center", most: int = MOST_PIXELS, workers: int = 0, ahead: int = 0
) -> Iterator[Images | str]:
    """Each image in turn as (size, size, 3) uint8, or `path (what is wrong)`; threads work ahead.

    Args:
        most: see `read_rgb`.
        workers: threads; 0: as many as cores.
        ahead: images that are decoded before they are asked for, at the least.
    """
    workers = workers or cores()
    pool = ThreadPoolExecutor(workers, "decode")
    try:
        queue: deque[Future[Images | str]] = deque()
        for path in paths:
            queue.append(pool.submit(_decoded, path, size, crop, most))
            if len(queue) > max(8 * workers, ahead):
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(path: Path, size: int, crop: str, most: int) -> Images | str:
    rgb = read_rgb(path, most)
    return rgb if isinstance(rgb, str) else fit(rgb, size, crop)


def read_rgb(path: Path, most: int = MOST_PIXELS) -> "Image | str":
    """All of an image, or `path (what is wrong)`.

    Of an animation the first frame; 16 bits are scaled to 8; gray, palettes, CMYK and transparency become RGB.

    Args:
        most: `dataset.max_pixels`; what has more is not decoded.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # ours counts, which a key can raise
    try:
        with Image.open(regular(path)) as image:
            if image.width * image.height > most:
                held = f"{image.width}x{image.height} are {image.width * image.height:,} pixels"
                return f"{path} ({held}, more than max_pixels={most}, which can be raised)"
            return _rgb(image)
    except UnidentifiedImageError:
        return f"{path} (not an image)"
    except Exception as error:  # a damaged file may raise anything
        return f"{path} ({reason(error)})"


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


def _rgb(image: "Image") -> "Image":
    """Eight bits a channel. Raises ValueError for pixels whose range is not known."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        pixels = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255; Pillow would make 255 of all from 255 on
        return Image.fromarray(np.rint(pixels).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert the image to 8 or 16 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns; the colors are the same
    return image.convert("RGB")
