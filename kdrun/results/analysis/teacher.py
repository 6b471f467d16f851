"""Whether a teacher deserves the trust that weighting by its entropy (arXiv 2511.18826) puts in its confidence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.methods.uncertainty import confident_errors, confident_errors_warning, entropy_weight
from kdrun.results.analysis.options import Teacher as Options
from kdrun.runs.finished import FinishedRun

GROUPS = 10


@dataclass(frozen=True)
class Decile:
    """Images of similar entropy, the surest first."""

    images: int
    entropy: float
    """Mean H(p), nats."""
    weight: float
    """Mean w = 1 - H / log C."""
    confidence: float
    accuracy: float
    errors: float
    """Share of all errors that fall into this group."""


def entropy_deciles(logits: Tensor, target: Tensor, groups: int = GROUPS) -> list[Decile]:
    """Groups of equal size (up to one) by entropy; of fewer images than groups, one image each.

    Args:
        logits: (N, C).
        target: (N,) int64.
    """
    logits = logits.double()
    p = logits.softmax(1)
    entropy, weight = torch.special.entr(p).sum(1), entropy_weight(logits).double()
    confidence, predicted = p.max(1)
    correct = (predicted == target).double()
    wrong = (1 - correct).sum().clamp(min=1)
    return [
        Decile(
            len(part), entropy[part].mean().item(), weight[part].mean().item(), confidence[part].mean().item(),
            correct[part].mean().item(), ((1 - correct[part]).sum() / wrong).item(),
        )
        for part in entropy.argsort(stable=True).tensor_split(min(groups, len(logits)))
    ]  # fmt: skip


def report(options: Options) -> str:
    return "\n\n".join(teacher(FinishedRun.open(run), options.split) for run in options.run)


def teacher(run: FinishedRun, split: str = "test") -> str:
    """Entropy deciles of the run's teacher against its accuracy. A teacher that is confidently wrong is said in the
    record too, as a warning."""
    logits, target = run.predictions(split, "teacher")
    rows = [f"{'images':>8}{'entropy':>9}{'weight':>8}{'conf.':>8}{'acc.':>8}{'of errors':>11}"]
    rows += [
        f"{d.images:>8}{d.entropy:>9.4f}{d.weight:>8.3f}{d.confidence:>8.3f}{d.accuracy:>8.3f}{d.errors:>10.1%} "
        for d in entropy_deciles(logits, target)
    ]
    wrong = logits.argmax(1) != target
    weight = entropy_weight(logits).double()
    told = [f"{run.directory}: its teacher on {len(target)} {split} images, from sure to unsure", *rows]
    share = ((weight * wrong).sum() / weight.sum()).item()
    told.append(
        f"errors: {wrong.double().mean():.2%} of the images, {share:.2%} of their weight; "
        f"{confident_errors(logits, target):.1%} of the errors have a weight above 1/2"
    )
    if (warning := confident_errors_warning(logits, target, split)) is not None:
        told.append(f"warning: {warning}")
        with run.amended() as record:
            known = record.get("warnings") or []
            record["warnings"] = known if warning in known else [*known, warning]
    return "\n".join(told)
