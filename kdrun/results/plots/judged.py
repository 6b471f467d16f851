"""What two kinds of pictures are made of: how sure a run's network was of each image, and whether it was right."""

import torch
from torch import Tensor

from kdrun.core.errors import KdrunError
from kdrun.results.plots.options import RunOptions
from kdrun.runs.finished import FinishedRun

Judged = tuple[Tensor, Tensor]  # confidence and correctness, (N,) float64 each, the most confident image first


def judged(run: FinishedRun, options: RunOptions) -> dict[str, Judged]:
    """Of the network, and of the run's teacher where it has one, from the predictions that the run kept.

    Raises:
        KdrunError: no such predictions, or logits that are not numbers.
    """
    nets = [options.net or run.record["headline"]]
    if f"{options.split}-teacher" in run.predicted and "teacher" not in nets:
        nets.append("teacher")
    return {net: _judged(run, options.split, net) for net in nets}


def _judged(run: FinishedRun, split: str, net: str) -> Judged:
    logits, target = run.predictions(split, net)
    if logits.isnan().any():
        raise KdrunError(f"{run.directory}: predictions {split}-{net} hold logits that are not numbers (NaN)")
    confidence, predicted = logits.double().softmax(1).max(1)
    order = confidence.argsort(descending=True, stable=True)
    return confidence[order], (predicted == target).to(torch.float64)[order]
