"""Learning curves with bands over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kdrun.core.errors import KdrunError, allowed
from kdrun.results.cell import curve_of, logged_names, run_name
from kdrun.results.fill import planned_curves
from kdrun.results.plots.figure import (
    COLORS,
    band_alpha,
    color,
    drawn,
    legend,
    legend_height,
    marker,
    panels,
    places,
    told,
)
from kdrun.results.plots.options import Curves as Options
from kdrun.runs.metric import is_percent
from kdrun.runs.record import open_record

Curve = Mapping[int, float]  # step -> value


@dataclass(frozen=True)
class Band:
    """Curves of several seeds as one, at the steps that all of them have."""

    steps: list[int]
    middle: list[float]
    low: list[float]
    high: list[float]
    n: int


def band(curves: Sequence[Curve], kind: str) -> Band:
    """Of the curves that have come as far as the longest one."""
    end = max(max(curve) for curve in curves)
    curves = [curve for curve in curves if end in curve]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [[curve[step] for curve in curves] for step in steps]
    middle = [mean(v) for v in values]
    if kind == "range":
        low, high = [min(v) for v in values], [max(v) for v in values]
    else:
        spread = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
    return Band(steps, middle, low, high, len(curves))


def report(options: Options) -> str:
    name = f"curves-{options.metric.replace('/', '-')}"
    curves: dict[str, list[dict[int, float]]] = {}
    if options.table is not None:
        curves = planned_curves(options.table, Path(options.outputs), options.metric)
        default = Path(options.outputs) / "figures" / f"{name}-{options.table}"
    else:
        for directory, _ in (open_record(run, options.outputs) for run in options.run):
            curves[run_name(directory)] = [curve_of(directory, options.metric)]
            if not curves[run_name(directory)][0]:
                near = allowed(options.metric, logged_names(directory))
                raise KdrunError(f"{directory}: has not logged {options.metric}{near}")
            default = directory / "analysis" / name
        if len(options.run) > 1:
            default = Path(options.outputs) / "figures" / name
    bands = {label: band(seeds, options.band) for label, seeds in curves.items()}
    paths = places(default, options.out)
    draw(bands, options.metric, paths)
    return told(paths)


def draw(bands: Mapping[str, Band], metric: str, paths: Sequence[Path]) -> None:
    scale, unit = (100, ", %") if is_percent(metric) else (1, "")
    labels = {name: f"{name} (n={one.n})" for name, one in bands.items()}
    with drawn(paths, 3.1 + legend_height(list(labels.values()))) as figure:
        [axes] = panels(figure)
        for k, (name, one) in enumerate(bands.items()):
            low, middle, high = ([scale * v for v in values] for values in (one.low, one.middle, one.high))
            axes.fill_between(one.steps, low, high, color=color(k), alpha=band_alpha(len(bands)), linewidth=0)
            every = max(len(one.steps) // 8, 1)
            look: dict[str, Any] = {
                "color": color(k),
                "marker": marker(k),
                "linestyle": "-" if k < len(COLORS) else "--",
            }
            axes.plot(one.steps, middle, markevery=every, label=labels[name], **look)
            if len(one.steps) == 1:  # a lone dot says nothing of itself
                reach = [[middle[0] - low[0]], [high[0] - middle[0]]]
                axes.errorbar(one.steps, middle, reach, color=color(k), capsize=3)
                axes.annotate(
                    f"{middle[0]:.4g}, evaluated once, at step {one.steps[0]}", (one.steps[0], middle[0]), (7, 5),
                    textcoords="offset points", fontsize=8, color=color(k),
                )  # fmt: skip
        axes.set(xlabel="step", ylabel=f"{metric}{unit}")
        legend(figure)
