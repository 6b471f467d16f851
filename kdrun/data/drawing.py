"""Test images for whom nobody has named any: drawn once and for all, with copies of one image on one side."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kdrun.config.dataset import OwnFilesConfig
from kdrun.core.hashing import each_sha256, known_sha256
from kdrun.data.images import name_below
from kdrun.data.listing import Files


def drawn_test(files: Files, folder: Path, config: OwnFilesConfig) -> tuple[Files, Files, list[str]]:
    """Training images, test images, and what to say of them.

    Of each class `test_fraction` becomes the test, one image at the least, and one at the least is left. The order of
    the draw is that of the hashes of `test_seed` and each name, so that a photo more or less moves few others.
    """
    copies = same_content([path for path, _ in files])
    first_of = {at: group[0] for group in copies for at in group}
    units: dict[int, list[int]] = defaultdict(list)  # position of an image's first copy -> of all
    for at in range(len(files)):
        units[first_of.get(at, at)].append(at)
    classes: dict[int, list[list[int]]] = defaultdict(list)
    for first, unit in units.items():
        classes[files[first][1]].append(unit)

    def place(unit: list[int]) -> bytes:
        name = name_below(files[unit[0]][0], folder)
        return hashlib.sha256(f"{config.test_seed}\0{name}".encode(errors="surrogateescape")).digest()

    test: set[int] = set()
    for members in classes.values():
        count, total = 0, sum(map(len, members))
        wanted = min(max(round(total * (config.test_fraction or 0)), 1), total - 1)
        for unit in sorted(members, key=place):
            if count + len(unit) <= wanted or (not count and len(unit) < total):
                test.update(unit)
                count += len(unit)
            if count >= wanted:
                break
    train, drawn = ([file for at, file in enumerate(files) if (at in test) == side] for side in (False, True))
    return train, drawn, told_copies(files, copies, folder)


def same_content(paths: Sequence[Path]) -> list[list[int]]:
    """Positions of files of the same bytes, two or more in each list. Only files of equal size are read."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for at, size in enumerate(map(_size, paths)):
        if size:
            sizes[size].append(at)
    alike = [at for group in sizes.values() if len(group) > 1 for at in group]
    groups: dict[str, list[int]] = defaultdict(list)
    for at, found in zip(alike, each_sha256([paths[at] for at in alike], _known), strict=True):
        if found:
            groups[found].append(at)
    return sorted(group for group in groups.values() if len(group) > 1)


def bytes_alike(paths: Sequence[Path]) -> int:
    """How many bytes `same_content` would read."""
    sizes: dict[int, int] = defaultdict(int)
    for size in map(_size, paths):
        sizes[size] += 1
    return sum(size * count for size, count in sizes.items() if count > 1)


def told_copies(files: Files, copies: Sequence[Sequence[int]], folder: Path) -> list[str]:
    """Lines for the log and the record."""

    def named(group: Sequence[int]) -> str:
        return " = ".join(name_below(files[at][0], folder) for at in group[:3])

    lines = []
    if copies:
        count = sum(len(group) - 1 for group in copies)
        told = "image has the bytes of another one and stands" if count == 1 else (
            "images have the bytes of another one and stand")  # fmt: skip
        lines.append(f"{folder}: {count} {told} on one side with it, e.g. {'; '.join(map(named, copies[:3]))}")
    if odd := [group for group in copies if len({files[at][1] for at in group}) > 1]:
        told = "image stands" if len(odd) == 1 else "images stand"
        lines.append(f"{folder}: {len(odd)} {told} in more than one class, e.g. {'; '.join(map(named, odd[:3]))}")
    return lines


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # whoever reads it says so


def _known(path: Path) -> str:
    try:
        return known_sha256(path, path.stat())
    except OSError:
        return ""
