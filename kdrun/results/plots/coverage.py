"""Risk and coverage: the error among the images that a network is surest of (Geifman et al. 2019, arXiv 1805.08206)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kdrun.metrics import risk_coverage, risk_curve
from kdrun.results.plots.figure import color, drawn, legend, panels, places, told
from kdrun.results.plots.judged import Judged, judged
from kdrun.results.plots.options import Coverage as Options
from kdrun.runs.finished import FinishedRun


def report(options: Options) -> str:
    run = FinishedRun.open(options.run)
    paths = places(run.directory / "analysis" / f"coverage-{options.split}", options.out)
    draw(judged(run, options), paths)
    return told(paths)


def draw(networks: Mapping[str, Judged], paths: Sequence[Path]) -> None:
    with drawn(paths, 3.3) as figure:
        [axes] = panels(figure)
        for k, (net, (_, correct)) in enumerate(networks.items()):
            n = len(correct)
            aurc, e_aurc = (value.item() for value in risk_coverage(correct))
            label = f"{net}: AURC {aurc:.2%}, E-AURC {e_aurc:.2%}, error {1 - correct.mean().item():.2%}"
            covered = (torch.arange(1, n + 1) / n).numpy()
            risk = 100 * risk_curve(correct).numpy()
            axes.plot(100 * covered, risk, color=color(k), linestyle="-" if k == 0 else "--", label=label)
        axes.set(xlabel="coverage: the surest images, %", ylabel="error among them, %", xlim=(0, 100))
        axes.set_ylim(bottom=0)
        legend(figure, "upper")
