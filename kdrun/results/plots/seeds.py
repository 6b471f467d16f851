"""The figure of every seed: a dot each, the mean with its standard deviation, the paper's number beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kdrun.results.plots.figure import COLORS, drawn, panels
from kdrun.runs.metric import is_percent

BLUE, ORANGE = COLORS[:2]


@dataclass(frozen=True)
class Dots:
    """One row in one column, as tables show figures."""

    values: Sequence[float]
    paper: float | None = None


def draw(found: Mapping[str, Mapping[str, Dots]], metric: str, paths: Sequence[Path]) -> None:
    """Column -> row -> figures: a panel for each column."""
    rows = list(dict.fromkeys(row for dots in found.values() for row in dots))
    with drawn(paths, 1.3 + 0.27 * len(rows)) as figure:
        shown: dict[str, Any] = {}
        for axes, (column, dots) in zip(panels(figure, 1, len(found), sharey=True), found.items(), strict=True):
            for k, row in enumerate(rows):
                one = dots.get(row, Dots([]))
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
            axes.set_yticks(range(len(rows)), rows)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set(title=column, xlabel=f"{metric}{', %' if is_percent(metric) else ''}")
            axes.margins(x=0.08)
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=3)
