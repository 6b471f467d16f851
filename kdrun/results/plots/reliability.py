"""Reliability diagram: accuracy by confidence, and how often each confidence occurs (Guo et al. 2017, 1706.04599)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from kdrun.metrics import BINS, expected_calibration_error, reliability_bins
from kdrun.results.cell import run_name
from kdrun.results.plots.figure import COLORS, GRAY, NARROW, WIDTH, drawn, legend, panels, places, told
from kdrun.results.plots.judged import Judged, judged
from kdrun.results.plots.options import Reliability as Options
from kdrun.runs.finished import FinishedRun

BLUE, ORANGE = COLORS[:2]
SKY = COLORS[5]


def report(options: Options) -> str:
    run = FinishedRun.open(options.run)
    paths = places(run.directory / "analysis" / f"reliability-{options.split}", options.out)
    draw(judged(run, options), paths, f"{run_name(run.directory)}, {options.split} images")
    return told(paths)


def draw(networks: Mapping[str, Judged], paths: Sequence[Path], title: str = "") -> None:
    """The networks side by side; bins are those of ECE, an empty one has no bar. The legend stands below all panels."""
    edges = torch.arange(BINS) / BINS
    titles = {net: fill(net, 36) for net in networks}
    height = 4.8 + 0.17 * max(name.count("\n") for name in titles.values()) + 0.2 * bool(title)
    room = (height, WIDTH) if len(networks) > 1 else (height + 0.4, NARROW)  # its legend has more lines
    with drawn(paths, *room) as figure:
        options = {"sharex": True, "sharey": "row", "height_ratios": [2.6, 1]}
        grid = panels(figure, 2, len(networks), **options)
        upper, lower = grid[: len(grid) // 2], grid[len(grid) // 2 :]
        for top, bottom, (net, (confidence, correct)) in zip(upper, lower, networks.items(), strict=True):
            size, conf, acc = reliability_bins(confidence, correct)
            used = size > 0
            at, low, gap = edges[used].numpy(), acc[used].numpy(), (conf - acc)[used].numpy()
            bar: dict[str, Any] = {"width": 1 / BINS, "align": "edge", "linewidth": 0.8}
            top.bar(at, low, color=SKY, edgecolor="white", label="accuracy of a bin", **bar)
            gaps = {**bar, "bottom": low, "edgecolor": ORANGE, "hatch": "////", "label": "gap to its confidence"}
            top.bar(at, gap, color="none", **gaps)
            top.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
            ece = expected_calibration_error(confidence, correct)
            right, sure = correct.mean().item(), confidence.mean().item()
            told = f"ECE {ece:.2%}, accuracy {right:.1%}, confidence {sure:.1%}\n{len(confidence):,} images"
            top.set(xlim=(0, 1), ylim=(0, 1))
            top.set_title(f"{titles[net]}\n{told}", fontsize=9)
            bottom.bar(edges.numpy(), (size / size.sum()).numpy(), color="#bbbbbb", edgecolor="white", **bar)
            bottom.axvline(right, color=BLUE, linestyle="-", label="mean accuracy")
            bottom.axvline(sure, color=ORANGE, linestyle="--", label="mean confidence")
            bottom.set(xlabel="confidence", ylim=(0, 1))
        upper[0].set_ylabel("accuracy")
        lower[0].set_ylabel("images, share")
        if title:
            figure.suptitle(fill(title, 48 if len(networks) == 1 else 100), fontsize=10)
        legend(figure)
