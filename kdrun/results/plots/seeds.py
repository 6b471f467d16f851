"""The figure of every seed: a dot each, the mean with its standard deviation, the paper's number beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from kdrun.results.plots.figure import COLORS, NARROW, drawn, panels
from kdrun.runs.metric import is_percent

BLUE, ORANGE = COLORS[:2]


@dataclass(frozen=True)
class Dots:
    """One row in one column, as tables show figures."""

    values: Sequence[float]
    paper: float | None = None


def draw(column: str, dots: Mapping[str, Dots], metric: str, paths: Sequence[Path]) -> None:
    """Of one column, row by row, narrow enough for a small screen."""
    names = [fill(row, 22) for row in dots]
    lines = sum(1 + name.count("\n") for name in names)
    with drawn(paths, 1.3 + 0.14 * (len(names) + lines), NARROW) as figure:
        shown: dict[str, Any] = {}
        [axes] = panels(figure)
        for k, one in enumerate(dots.values()):
            if len(one.values) > 1:
                shown["mean ± std"] = axes.errorbar(
                    mean(one.values), k, xerr=stdev(one.values), fmt="|", color=BLUE, markersize=13, capsize=3,
                    markeredgewidth=1.6,
                )  # fmt: skip
            if one.values:
                at = [k] * len(one.values)
                shown["a seed"] = axes.scatter(one.values, at, s=26, color=BLUE, alpha=0.75, linewidths=0, zorder=3)
            if one.paper is not None:
                shown["the paper's"] = axes.scatter([one.paper], [k], s=34, marker="D", color=ORANGE, zorder=4)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(title=fill(column, 36), xlabel=f"{metric}{', %' if is_percent(metric) else ''}")
        axes.margins(x=0.08)
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(shown), columnspacing=1)
