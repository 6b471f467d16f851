"""Reliability diagram: accuracy by confidence, and how often each confidence occurs (Guo et al. 2017, 1706.04599)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from kdrun.metrics import BINS, expected_calibration_error, reliability_bins
from kdrun.results.plots.figure import COLORS, GRAY, drawn, panels, places, told
from kdrun.results.plots.judged import Judged, judged
from kdrun.results.plots.options import Reliability as Options
from kdrun.runs.finished import FinishedRun

BLUE, ORANGE = COLORS[:2]
SKY = COLORS[5]


def report(options: Options) -> str:
    run = FinishedRun.open(options.run)
    paths = places(run.directory / "analysis" / f"reliability-{options.split}", options.out)
    draw(judged(run, options), paths)
    return told(paths)


def draw(networks: Mapping[str, Judged], paths: Sequence[Path]) -> None:
    """The networks side by side; bins are those of ECE, an empty one has no bar."""
    edges = torch.arange(BINS) / BINS
    titles = {net: fill(net, 36) for net in networks}
    with drawn(paths, 4.6 + 0.17 * max(title.count("\n") for title in titles.values())) as figure:
        options = {"sharex": True, "sharey": "row", "height_ratios": [2.6, 1]}
        grid = panels(figure, 2, max(len(networks), 2), **options)
        upper, lower = grid[: len(grid) // 2], grid[len(grid) // 2 :]
        for axes in (*upper[len(networks) :], *lower[len(networks) :]):
            axes.remove()
        for top, bottom, (net, (confidence, correct)) in zip(upper, lower, networks.items(), strict=False):
            size, conf, acc = reliability_bins(confidence, correct)
            used = size > 0
            at, low, gap = edges[used].numpy(), acc[used].numpy(), (conf - acc)[used].numpy()
            bar: dict[str, Any] = {"width": 1 / BINS, "align": "edge", "linewidth": 0.8}
            top.bar(at, low, color=SKY, edgecolor="white", label="accuracy", **bar)
            gaps = {**bar, "bottom": low, "edgecolor": ORANGE, "hatch": "////", "label": "gap to confidence"}
            top.bar(at, gap, color="none", **gaps)
            top.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
            ece = expected_calibration_error(confidence, correct)
            top.set(xlim=(0, 1), ylim=(0, 1), title=f"{titles[net]}\nECE {ece:.2%}, {len(confidence):,} images")
            bottom.bar(edges.numpy(), (size / size.sum()).numpy(), color="#bbbbbb", edgecolor="white", **bar)
            for value, color, line, name in (
                (correct.mean().item(), BLUE, "-", "accuracy"),
                (confidence.mean().item(), ORANGE, "--", "mean confidence"),
            ):
                bottom.axvline(value, color=color, linestyle=line, label=f"{name} {value:.1%}")
            bottom.set(xlabel="confidence", ylim=(0, 1))
            bottom.legend(loc="upper left")
        upper[0].set_ylabel("accuracy")
        lower[0].set_ylabel("images, share")
        figure.legend(*upper[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
