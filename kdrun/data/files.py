"""Getting and checking the files of published datasets, and decoding folders of images."""

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kdrun.data.dataset import Images
from kdrun.errors import DataError

CONNECT_TIMEOUT = 20  # seconds without an answer until a server counts as out of reach
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}


def ensure_files(root: Path, needed: Sequence[Path], fetch: Callable[[], object], source: str, download: bool) -> None:
    """Make sure that `needed` (below root) exist, downloading them with `fetch` where allowed.

    Raises:
        DataError: absent and not to be had; says which files to put where.
    """
    missing = [path for path in needed if not path.exists()]
    if not missing:
        return
    where = f"dataset.root: {missing[0]} is not there"
    if not download:
        raise DataError(f"{where}; put the content of {source} below {root}, or allow dataset.download")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT)
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch()
    except (OSError, RuntimeError) as error:
        why = getattr(error, "reason", None) or error
        raise DataError(f"{where} and cannot be downloaded ({why}); put the content of {source} below {root}") from None
    finally:
        socket.setdefaulttimeout(before)
    still = [path for path in missing if not path.exists()]
    if still:
        raise DataError(f"dataset.root: {still[0]} is still not there after the download of {source}")


def verify(checks: Iterable[tuple[Path, str]]) -> None:
    """Compare md5 sums. Raises DataError for the first file that differs."""
    from torchvision.datasets.utils import check_integrity

    for path, md5 in checks:
        if not check_integrity(str(path), md5):
            raise DataError(
                f"dataset.root: {path} is damaged or not the published file (md5 differs); "
                "delete it to download it again, or set dataset.verify_md5=false for a re-packed copy"
            )


def list_classes(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Class names (sorted folder names), image files and their class numbers.

    Raises:
        DataError: no such folder, no classes, or a class without images (named).
    """
    if not folder.is_dir():
        raise DataError(f"dataset.path: {folder}: no such folder")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"dataset.path: {folder}: no class folders; expected {folder}/<class>/<image>")
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not found:
            raise DataError(f"dataset.path: {folder / name}: the class has no images ({', '.join(sorted(EXTENSIONS))})")
        paths += found
        labels += [number] * len(found)
    return names, paths, labels


def decode(paths: Sequence[Path], size: int) -> Images:
    """(N, size, size, 3) uint8: short side resized to `size` (bicubic, antialiased), then the center square.

    Raises:
        DataError: unreadable images; the first is named, and how many there are.
    """
    from PIL import Image, UnidentifiedImageError

    out = np.empty((len(paths), size, size, 3), np.uint8)

    def one(item: tuple[int, Path]) -> str | None:
        number, path = item
        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{path} ({error})" if str(path) not in str(error) else str(error)
        scale = size / min(rgb.size)
        wide, high = (max(round(side * scale), size) for side in rgb.size)
        rgb = rgb.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        out[number] = np.asarray(rgb.crop((left, top, left + size, top + size)))
        return None

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        bad = [problem for problem in pool.map(one, enumerate(paths)) if problem is not None]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(f"dataset.path: unreadable image {bad[0]}{more}")
    return out
