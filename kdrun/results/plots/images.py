"""A contact sheet: some images of each class, as networks are given them before any view is drawn.

A user's own image files are all packed for it, as training would: which of them cannot be decoded is told here.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdrun.config.dataset import DatasetConfig, FilesConfig, OwnFilesConfig
from kdrun.core.errors import DataError
from kdrun.data.arrays import Arrays
from kdrun.data.found import found
from kdrun.data.images import decoded
from kdrun.data.load import load_dataset
from kdrun.data.overview import overview
from kdrun.data.types import Images, Labels
from kdrun.results.plots.figure import WIDTH, drawn, panels, places, told
from kdrun.results.plots.options import Sheet as Options

COLUMNS = 10
"""Images of a class."""


def report(options: Options, dataset: DatasetConfig) -> str:
    outputs = Path(options.outputs)
    arrays, warnings = _loaded(dataset, outputs)
    lines, odd = overview(dataset, arrays, outputs)
    listing = found(dataset, outputs).listing
    labels = {"train": arrays.train_labels, "test": arrays.test_labels}[options.split]
    files = None if listing is None else {"train": [*listing.train, *listing.val], "test": listing.test}[options.split]
    if files is not None:  # the unreadable ones too
        labels = np.array([label for _, label in files], np.int64)
    chosen = _chosen(labels, arrays.num_classes, options.classes)
    flat = [at for row in chosen.values() for at in row]
    images: list[Images | str]
    if files is not None and isinstance(dataset, FilesConfig):
        images = list(decoded([files[at][0] for at in flat], dataset.size, dataset.pack.crop, dataset.reading))
    else:
        whole = {"train": arrays.train_images, "test": arrays.test_images}[options.split]
        images = [whole[at] for at in flat]
    if not flat:
        raise DataError(f"dataset: no {options.split} images to draw")
    sizes = np.bincount(labels[labels >= 0], minlength=arrays.num_classes)
    titles = {k: f"{arrays.class_names[k]} ({sizes[k]})" for k in chosen}
    rows, start = [], 0
    for k, row in chosen.items():
        rows.append((titles[k], images[start : start + len(row)]))
        start += len(row)
    paths_out = places(outputs / "figures" / f"images-{dataset.name}", options.out)
    draw(rows, paths_out)
    left = arrays.num_classes - len(chosen)
    more = [f"{left} more classes are not drawn; classes={arrays.num_classes} draws them"] if left > 0 else []
    odd += [f"unreadable image {problem}" for problem in images if isinstance(problem, str)
            and not any(problem in line for line in warnings)]  # fmt: skip
    return "\n".join([*lines, *(f"warning: {line}" for line in (*warnings, *odd)), *more, told(paths_out)])


def _loaded(dataset: DatasetConfig, outputs: Path) -> tuple[Arrays, Sequence[str]]:
    """The arrays, and what to warn of: of a user's own files each that cannot be decoded, in the words of training."""
    pixels = isinstance(dataset, OwnFilesConfig) and not dataset.stream
    try:
        arrays = load_dataset(dataset, outputs, pixels)
    except DataError as error:
        if not isinstance(dataset, FilesConfig) or dataset.stream or dataset.skip_unreadable:
            raise
        arrays = load_dataset(dataset.replace(skip_unreadable=True), outputs, pixels)
        return arrays, [*arrays.warnings[:-1], *error.lines]  # of which the last is about the same files
    return arrays, arrays.warnings


def _chosen(labels: Labels, num_classes: int, most: int) -> dict[int, list[int]]:
    """Positions of images spread over each class, of classes spread over all: the same each time."""
    classes = np.unique(np.linspace(0, num_classes - 1, min(most, num_classes)).round().astype(int))
    out: dict[int, list[int]] = {}
    for k in classes.tolist():
        members = np.flatnonzero(labels == k)
        picks = np.linspace(0, len(members) - 1, min(COLUMNS, len(members))).round().astype(int)
        out[k] = members[picks].tolist()
    return out


def draw(rows: Sequence[tuple[str, Sequence[Images | str]]], paths: Sequence[Path]) -> None:
    """A row for each class; an unreadable image is an empty place with a cross."""
    side = WIDTH / COLUMNS
    with drawn(paths, (side + 0.22) * len(rows) + 0.1) as figure:
        axes = panels(figure, len(rows), COLUMNS)
        for at, place in enumerate(axes):
            place.set_axis_off()
            title, images = rows[at // COLUMNS]
            if at % COLUMNS == 0:
                place.set_title(title, loc="left", fontsize=8)
            if at % COLUMNS >= len(images):
                continue
            image = images[at % COLUMNS]
            if isinstance(image, str):
                place.plot([0, 1], [0, 1], [0, 1], [1, 0], color="#D55E00")
            else:
                place.imshow(image[..., 0] if image.shape[-1] < 3 else image[..., :3], cmap="gray", vmin=0, vmax=255)
