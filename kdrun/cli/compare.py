"""Set two finished runs side by side: configuration, metrics, and the images that they see differently.

kdrun compare run=outputs/runs/... run=outputs/runs/...
kdrun compare run=... run=... split=val net=student show=20
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from kdrun.config.names import differing_keys
from kdrun.core.errors import KdrunError
from kdrun.core.later import later
from kdrun.core.schema import Schema, from_arguments
from kdrun.results.cell import run_name
from kdrun.results.found import flatten
from kdrun.runs.metric import is_percent
from kdrun.runs.record import open_records

if TYPE_CHECKING:
    from kdrun.runs.finished import FinishedRun
else:
    FinishedRun = later("kdrun.runs.finished", "FinishedRun")

OUTSIDE = ("execution.", "tracker.", "evaluate.")


class Options(Schema):
    """`run=A run=B [split=test|val] [net=] [show=10]`."""

    run: list[str] = Field(min_length=2, max_length=2)
    split: Literal["val", "test"] = "test"
    net: str | None = None
    """A network of both; null: the headline of each."""
    show: int = Field(10, ge=0)
    """Flipped images that are listed each way."""


def main(arguments: Sequence[str]) -> str:
    """Raises KdrunError: a directory that is no finished run, or predictions of other images."""
    options = from_arguments(Options, arguments)
    a, b = (FinishedRun(*run) for run in open_records(options.run))
    lines = [f"A {run_name(a.directory)}", f"B {run_name(b.directory)}", "", *_configs(a, b), "", *_metrics(a, b)]
    return "\n".join([*lines, "", *_images(a, b, options)])


def _configs(a: FinishedRun, b: FinishedRun) -> list[str]:
    flats = [flatten(run.record["config"]) for run in (a, b)]
    keys = [key for key in differing_keys(flats) if not key.startswith(OUTSIDE)]
    if not keys:
        return ["the same configuration"]
    wide = max(map(len, keys))
    return [f"{key:<{wide}}  {flats[0].get(key, '-')} | {flats[1].get(key, '-')}" for key in keys]


def _metrics(a: FinishedRun, b: FinishedRun) -> list[str]:
    """What both have, of networks of the same names; fractions in percent."""
    first, second = (run.record["metrics"] for run in (a, b))
    keys = [key for key in first if second.get(key) is not None and first[key] is not None]
    if not keys:
        return ["no metric in both"]
    wide = max(map(len, keys))
    lines = [f"{'':<{wide}}  {'A':>9}{'B':>9}{'B - A':>10}"]
    for key in keys:
        scale, digits = (100, 2) if is_percent(key) else (1, 4)
        x, y = scale * first[key], scale * second[key]
        lines.append(f"{key:<{wide}}  {x:>9.{digits}f}{y:>9.{digits}f}{y - x:>+10.{digits}f}")
    return lines


def _images(a: FinishedRun, b: FinishedRun, options: Options) -> list[str]:
    """Who is right where: in all, by class, by image."""
    found = []
    for run in (a, b):
        kept = run.kept(options.split, options.net or run.record["headline"])
        if kept.logits.isnan().any():  # an argmax of NaNs would look like a prediction
            raise KdrunError(f"{run.directory}: its predictions of split={options.split} are not numbers (NaN)")
        order = kept.index.argsort()
        found.append(tuple(values[order].numpy() for values in (kept.index, kept.target, kept.logits.argmax(1))))
    (index, target, x), (other_index, other_target, y) = found
    if not np.array_equal(index, other_index) or not np.array_equal(target, other_target):
        raise KdrunError(f"their predictions of split={options.split} are of other images; images are not compared")
    right_a, right_b = x == target, y == target
    gained, lost = np.flatnonzero(~right_a & right_b), np.flatnonzero(right_a & ~right_b)
    lines = [
        f"{len(target)} {options.split} images: both right {int((right_a & right_b).sum())}, only A {len(lost)}, "
        f"only B {len(gained)}, neither {int((~right_a & ~right_b).sum())}; "
        f"another prediction for {int((x != y).sum())}; p = {_sign_test(len(gained), len(lost)):.3f} (McNemar, exact)",
        f"{'class':>6}{'images':>8}{'A, %':>8}{'B, %':>8}{'B - A':>8}",
    ]
    for label in np.unique(target):
        mine = target == label
        first, second = 100 * right_a[mine].mean(), 100 * right_b[mine].mean()
        lines.append(f"{label:>6}{mine.sum():>8}{first:>8.2f}{second:>8.2f}{second - first:>+8.2f}")
    for what, flipped in (("only B is right", gained), ("only A is right", lost)):
        if len(flipped) and options.show:
            shown = [f"{index[i]} ({target[i]}: {x[i]} -> {y[i]})" for i in flipped[: options.show]]
            more = f", {len(flipped) - options.show} more" if len(flipped) > options.show else ""
            lines.append(f"{what}: image (class: A -> B) {', '.join(shown)}{more}")
    return lines


def _sign_test(gained: int, lost: int) -> float:
    """Two-sided exact p of as uneven a split of the discordant images."""
    from scipy.special import bdtr

    n = gained + lost
    return min(1.0, 2 * float(bdtr(min(gained, lost), n, 0.5))) if n else 1.0
