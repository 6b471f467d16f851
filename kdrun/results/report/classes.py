"""Accuracy of each class and the confusion matrix of each cell whose runs have kept what they said of the test images.

A choice among cells needs no script: each is a `<details>`. Up to `SMALL` classes the matrix is a table with its
shares, above them a picture, a pixel for each pair of classes, as dark as the share is large.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdrun.core.later import later
from kdrun.results.report.page import Text, grid, wide
from kdrun.results.report.pictures import has_predictions, quietly
from kdrun.results.table import Table

if TYPE_CHECKING:
    from kdrun.metrics import confusion_matrix
    from kdrun.runs.classes import class_names
    from kdrun.runs.finished import FinishedRun
else:
    confusion_matrix = later("kdrun.metrics", "confusion_matrix")
    class_names = later("kdrun.runs.classes", "class_names")
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")

MOST_CELLS = 24
SMALL = 20  # classes whose matrix is a table
MAPPED = 400  # classes whose matrix is a picture; of more there is none
LISTED = 120  # classes that are all listed; of more the worst and the best
WORST, BEST, CONFUSED = 60, 10, 12


@dataclass(frozen=True)
class Confusion:
    """Of one cell, over the seeds that kept their predictions."""

    counts: npt.NDArray[np.int64]
    """(K, K): images of class i that were taken for class j."""
    names: Sequence[str]
    seeds: list[int]

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """(K, K), of the images of each true class; 0 where it has none."""
        shares: npt.NDArray[np.float64] = self.counts / self.images.clip(min=1)[:, None]
        return shares

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """(K,), over all seeds."""
        images: npt.NDArray[np.int64] = self.counts.sum(1)
        return images


def of_classes(table: Table, outputs: Path) -> str:
    """What a reader opens for a row; nothing where no run has kept predictions."""
    out, left = list[str](), 0
    for row, column in table.cells:
        seeds = [s for s in table.cells[row, column].runs if has_predictions(table, row, column, s, outputs)]
        left += bool(seeds) and len(out) >= MOST_CELLS
        one = _of_cell(table, row, column, seeds, outputs) if seeds and len(out) < MOST_CELLS else None
        if one is not None:
            at = row if len(table.columns) == 1 else f"{row}, {column}"
            out.append(_shown(at, one))
    if not out:
        return ""
    more = f" The first {MOST_CELLS} cells of {MOST_CELLS + left}." if left else ""
    note = f"Of test images, the seeds of a cell taken together. Open a row to see its classes.{more}"
    return f'<p class="note">{note}</p>{"".join(out)}'


def _of_cell(table: Table, row: str, column: str, seeds: Sequence[int], outputs: Path) -> Confusion | None:
    total, used, names = None, [], None
    for seed in seeds:
        run = quietly(FinishedRun.open, outputs / table.cells[row, column].runs[seed].place)
        found = run and quietly(run.predictions, "test", run.record["headline"])
        if not found:
            continue
        logits, target = found
        matrix = confusion_matrix(logits.argmax(1), target, logits.shape[1]).numpy()
        if total is not None and matrix.shape != total.shape:
            continue
        total = matrix if total is None else total + matrix
        used.append(seed)
        names = names or class_names(run, len(matrix))
    return None if total is None or names is None else Confusion(total, names, used)


def _shown(at: str, one: Confusion) -> str:
    right = one.counts.trace() / max(one.counts.sum(), 1)
    seeds = f"seed{'s' if len(one.seeds) > 1 else ''} {', '.join(map(str, one.seeds))}"
    summary = f"{escape(at)} <small>{100 * right:.2f} % right, {seeds}</small>"
    parts = [f"<div>{_accuracies(one)}</div>", f"<div>{_matrix(one)}{_confused(one)}</div>"]
    return f'<details><summary>{summary}</summary><div class="beside">{"".join(parts)}</div></details>'


def _accuracies(one: Confusion) -> str:
    """A line for each class, the worst first."""
    images, right = one.images, one.counts.diagonal()
    taken = one.counts.sum(0)
    order = sorted(np.flatnonzero(images), key=lambda k: (right[k] / images[k], k))
    told = ""
    if len(order) > LISTED:
        told = f'<p class="note">The {WORST} worst and the {BEST} best of {len(order)} classes.</p>'
        order = [*order[:WORST], *order[-BEST:]]
    rows: list[list[Text]] = [
        [
            escape(one.names[k]), f"{100 * right[k] / images[k]:.1f}",
            f"{100 * right[k] / taken[k]:.1f}" if taken[k] else ("", None), str(images[k] // len(one.seeds)),
        ]
        for k in map(int, order)
    ]  # fmt: skip
    header = ["class", "right, %", "precision, %", "images"]
    return f"<h3>Classes, the worst first</h3>{grid('accuracy of each class', header, rows, (1, 2, 3))}{told}"


def _matrix(one: Confusion) -> str:
    count = len(one.names)
    if count > MAPPED:
        return f'<p class="note">No picture: it would have {count:,} x {count:,} pixels.</p>'
    return f"<h3>Confusion matrix</h3>{_cells(one) if count <= SMALL else _picture(one)}"


def _cells(one: Confusion) -> str:
    shares = 100 * one.shares
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in one.names)
    lines = []
    for name, row in zip(one.names, shares, strict=True):
        cells = "".join(f'<td style="--v:{v / 100:.2f}">{v:.0f}</td>' if v >= 0.5 else "<td></td>" for v in row)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = "\n".join(lines)
    told = '<p class="note">% of the images of a class (row) that were taken for each class (column).</p>'
    return told + wide(
        "confusion matrix",
        f'<table class="matrix"><thead><tr><th><span aria-hidden="true">is \\ as</span></th>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table>",
    )


def _picture(one: Confusion) -> str:
    """A PNG of one blue, more or less transparent: it lies on a light page and on a dark one."""
    from PIL import Image

    pixels = np.full((*one.counts.shape, 4), (47, 135, 205, 0), np.uint8)
    pixels[..., 3] = (255 * np.sqrt(one.shares)).round()  # or what is rare would not be seen
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").quantize(64, Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    count = len(one.names)
    label = f"confusion matrix of {count} classes"
    image = f'<img alt="{label}" width="{count}" height="{count}" src="data:image/png;base64,{data}">'
    told = "Down: the class of an image; across: what it was taken for; both in the order of the classes."
    return f'<p class="note">{told}</p><div class="map">{image}</div>'


def _confused(one: Confusion) -> str:
    shares = one.shares.copy()
    np.fill_diagonal(shares, 0)
    pairs = [divmod(int(k), len(shares)) for k in np.argsort(-shares, axis=None, kind="stable")[:CONFUSED]]
    rows: list[list[Text]] = [
        [escape(one.names[i]), escape(one.names[j]), f"{100 * shares[i, j]:.1f}"] for i, j in pairs if shares[i, j] > 0
    ]
    header = ["class", "taken for", "of its images, %"]
    return f"<h3>Most often confused</h3>{grid('most often confused', header, rows, (2,))}" if rows else ""
