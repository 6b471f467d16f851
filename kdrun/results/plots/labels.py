"""A metric against the number of labels, a line for each row, with bands over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from kdrun.results.plots.figure import band_alpha, color, drawn, legend, legend_height, marker, panels
from kdrun.runs.metric import is_percent


def draw(found: Mapping[str, Mapping[int, Sequence[float]]], metric: str, paths: Sequence[Path]) -> None:
    """Row -> number of labels -> value of each seed, as tables show it; the band is from the least to the greatest."""
    with drawn(paths, 3.1 + legend_height(list(found))) as figure:
        [axes] = panels(figure)
        for k, (row, points) in enumerate(found.items()):
            counts = sorted(points)
            middle = [mean(points[n]) for n in counts]
            low, high = ([f(points[n]) for n in counts] for f in (min, max))
            axes.fill_between(counts, low, high, color=color(k), alpha=band_alpha(len(found)), linewidth=0)
            axes.plot(counts, middle, marker(k) + "-", color=color(k), label=row)
        ticks = sorted({n for points in found.values() for n in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks], minor=False)
        axes.minorticks_off()
        axes.set(xlabel="labels", ylabel=f"{metric}{', %' if is_percent(metric) else ''}")
        legend(figure)
