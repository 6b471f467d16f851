"""Confusion matrix: of the images of each class, the share that a network takes for each."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from kdrun.metrics import confusion_matrix
from kdrun.results.cell import run_name
from kdrun.results.plots.figure import drawn, panels, places, told
from kdrun.results.plots.options import Confusion as Options
from kdrun.runs.classes import class_names
from kdrun.runs.finished import FinishedRun

NUMBERED = 20  # classes up to which cells have numbers and rows their names
LONGEST = 18  # letters of a name


def report(options: Options) -> str:
    run = FinishedRun.open(options.run)
    net = options.net or run.record["headline"]
    paths = places(run.directory / "analysis" / f"confusion-{options.split}", options.out)
    logits, target = run.predictions(options.split, net)
    title = f"{net} of {run_name(run.directory)}, {options.split} images"
    draw(logits, target, class_names(run, logits.shape[1]), paths, title)
    return told(paths)


def draw(logits: Tensor, target: Tensor, names: Sequence[str], paths: Sequence[Path], title: str = "") -> None:
    """Rows are shares of a class's images; its cells have their number where there are few classes."""
    classes = logits.shape[1]
    counts = confusion_matrix(logits.argmax(1), target, classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    right = counts.diagonal().sum().item() / max(len(target), 1)
    found = f"{right:.2%} of {len(target):,} images are right"
    with drawn(paths, 6.2) as figure:
        [axes] = panels(figure)
        image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        axes.set(xlabel="predicted class", ylabel="true class", title=f"{title}\n{found}" if title else found)
        if classes <= NUMBERED:
            short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
            axes.set_xticks(range(classes), short, rotation=0 if max(map(len, short)) < 3 else 90)
            axes.set_yticks(range(classes), short)
            for row in range(classes):
                for column in range(classes):
                    if count := int(counts[row, column]):
                        ink = "white" if shares[row, column] > 0.5 else "black"
                        axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink, fontsize=7)
        figure.colorbar(image, ax=axes, label="share of a class's images", shrink=0.8)
