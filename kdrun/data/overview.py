"""What one trains on, in a few lines: images, classes, sizes, formats, copies.

It costs the headers of `SAMPLE` files, and of a user's own files those of equal size are read to find copies, up to
`MOST_READ` bytes; nothing is decoded.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median_low

import numpy as np

from kdrun.config.dataset import DatasetConfig, OwnFilesConfig
from kdrun.core.quantities import readable
from kdrun.core.suffixes import suffix_of
from kdrun.data.arrays import Arrays
from kdrun.data.drawing import bytes_alike, same_content
from kdrun.data.found import found
from kdrun.data.images import name_below
from kdrun.data.listing import Listing
from kdrun.data.reading import opened

SAMPLE = 200  # files
MOST_READ = 256 << 20  # bytes


def overview(config: DatasetConfig, arrays: Arrays, outputs: Path) -> tuple[list[str], list[str]]:
    """What to say, and what to warn of."""
    lines, warnings = [_counts(arrays)], []
    listing = found(config, outputs).listing
    if listing is None:
        height, width, channels = arrays.train_images.shape[1:]
        return [f"{lines[0]}; {width}x{height} pixels of {channels} channels"], []
    lines.append(_files(listing.paths))
    if isinstance(config, OwnFilesConfig):
        size = bytes_alike(listing.paths)
        if size > MOST_READ:
            lines.append(f"copies: not looked for, {readable(size)} in files of equal size")
        else:
            copies = same_content(listing.paths)
            count = sum(len(group) - 1 for group in copies)
            lines.append(f"copies: {count} of {len(listing.paths)} files have the bytes of another one")
            warnings = _leaks(listing, copies)
    return lines, warnings


def _counts(arrays: Arrays) -> str:
    known = arrays.train_labels[arrays.train_labels >= 0]
    sizes = np.bincount(known, minlength=arrays.num_classes)
    val = f", {len(arrays.val)} of them official validation images" if arrays.val is not None else ""
    more = f", and {arrays.num_unlabeled} without labels" if arrays.num_unlabeled else ""
    least, most = int(sizes.argmin()), int(sizes.argmax())
    return (
        f"{len(known)} training images{val}{more}, {len(arrays.test_labels)} test images; {arrays.num_classes} classes,"
        f" the smallest {arrays.class_names[least]} ({sizes[least]} training images), the largest "
        f"{arrays.class_names[most]} ({sizes[most]})"
    )


def _files(paths: Sequence[Path]) -> str:
    endings = Counter(suffix_of(path.name) or "without an ending" for path in paths)
    told = ", ".join(f"{count} {kind}" for kind, count in endings.most_common(8))
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).round().astype(int))
    headers = [header for at in chosen if (header := _header(paths[at])) is not None]
    if not headers:
        return f"files: {told}"
    sides = sorted(((width, height) for _, width, height in headers), key=lambda side: side[0] * side[1])
    formats = ", ".join(sorted({kind for kind, _, _ in headers}))
    middle = median_low(range(len(sides)))
    (small, large, usual) = (f"{w}x{h}" for w, h in (sides[0], sides[-1], sides[middle]))
    return f"files: {told}; of {len(headers)} of them: {formats}, from {small} to {large} pixels, median {usual}"


def _header(path: Path) -> tuple[str, int, int] | None:
    """Format, width and height; None: it cannot be read, which is said where it is decoded."""
    try:
        with opened(path) as image:
            return image.format or "?", image.width, image.height
    except Exception:  # a damaged file may raise anything
        return None


def _leaks(listing: Listing, copies: Sequence[Sequence[int]]) -> list[str]:
    """A line where the test has images that are trained on."""
    first = len(listing.paths) - len(listing.test)
    both = [group for group in copies if group[0] < first <= group[-1]]
    if not both:
        return []
    count = sum(sum(at >= first for at in group) for group in both)
    paths = listing.paths
    names = [f"{name_below(paths[g[-1]], listing.folder)} = {name_below(paths[g[0]], listing.folder)}" for g in both]
    verb = "test image has" if count == 1 else "test images have"
    return [f"{listing.folder}: {count} {verb} the bytes of a training image, e.g. {'; '.join(names[:3])}"]
