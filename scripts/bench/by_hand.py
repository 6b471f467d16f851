"""Steps written out in plain torch, on batches that are there: what networks, losses and optimizer cost, nothing else.

Each gives a function that measures seconds of a step, for `scripts.bench.step`. They are what a method's own calls are
held against, so they take the same networks, coefficients and kernels.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.core.device import autocast
from kdrun.losses.logits import kd
from kdrun.methods.uncertainty import entropy_weight
from scripts.bench.harness import LoopBench, clock

if TYPE_CHECKING:
    from scripts.bench.step import CaseBench

Step = Callable[[], Tensor]
"""The loss of one step."""


def measured(bench: LoopBench, trained: nn.Module, step: Step) -> float:
    """Seconds of a step of loss, backward pass and optimizer."""
    optimizer, started = bench.optimizer(trained), 0.0
    for k in range(bench.steps):
        if k == bench.first:
            started = clock(bench.device)
        with autocast(bench.device, bench.config.schedule.precision):
            loss = step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return (clock(bench.device) - started) / (bench.steps - bench.first)


def pixels(bench: LoopBench, count: int, side: int) -> Tensor:
    """Normalised ones, as a network behind its input adapter sees them."""
    return torch.randn(count, 3, side, side, device=bench.device).to(memory_format=torch.channels_last)


def targets(bench: LoopBench, count: int) -> Tensor:
    return torch.arange(count, device=bench.device) % 100


def supervised(bench: "CaseBench") -> Callable[[], float]:
    size = bench.config.schedule.batch_size
    batch, wanted = pixels(bench, size, bench.seen), targets(bench, size)

    def bare() -> float:
        student = bench.network(bench.config.students[0])
        return measured(bench, student, lambda: F.cross_entropy(student(batch).float(), wanted))

    return bare


def distill(bench: "CaseBench") -> Callable[[], float]:
    """0.1 CE + 0.9 KD at T = 4."""
    size, teacher = bench.config.schedule.batch_size, bench.bare_teacher
    batch, wanted = pixels(bench, size, bench.seen), targets(bench, size)

    def bare() -> float:
        student = bench.network(bench.config.students[0])

        def step() -> Tensor:
            with torch.no_grad():
                taught = teacher(batch).float()
            logits = student(batch).float()
            return 0.1 * F.cross_entropy(logits, wanted) + 0.9 * kd(logits, taught, 4.0).mean()

        return measured(bench, student, step)

    return bare


def fixmatch(bench: "CaseBench") -> Callable[[], float]:
    """One pass of labeled, weak and strong images."""
    known = bench.config.schedule.batch_size
    pairs = known * bench.config.method.unlabeled_ratio  # type: ignore[attr-defined]
    batch, wanted = pixels(bench, known + 2 * pairs, bench.seen), targets(bench, known)

    def bare() -> float:
        student = bench.network(bench.config.students[0])

        def step() -> Tensor:
            labeled, weak, strong = student(batch).float().split([known, pairs, pairs])
            confidence, label = weak.detach().softmax(1).max(1)
            unlabeled = (F.cross_entropy(strong, label, reduction="none") * (confidence >= 0.95)).mean()
            return F.cross_entropy(labeled, wanted) + unlabeled

        return measured(bench, student, step)

    return bare


def students(bench: "CaseBench") -> Callable[[], float]:
    size = bench.config.schedule.batch_size
    return peers_step(bench, bench.bare_teacher, pixels(bench, size, bench.seen), targets(bench, size))


def peers_step(
    bench: LoopBench, teacher: Callable[[Tensor], Tensor], batch: Tensor, wanted: Tensor
) -> Callable[[], float]:
    """Students of `bench` that learn from a teacher, weighted by its entropy, and from each other: 0.4, 0.4, 0.2."""

    def bare() -> float:
        all_students = nn.ModuleList(bench.network(model) for model in bench.config.students)

        def step() -> Tensor:
            with torch.no_grad():
                taught = teacher(batch).float()
                weight = entropy_weight(taught)
            logits = [student(batch).float() for student in all_students]
            loss = torch.zeros((), device=bench.device)
            for own in logits:
                loss = loss + 0.4 * F.cross_entropy(own, wanted) + 0.4 * (weight * kd(own, taught, 4.0)).mean()
                for other in logits:
                    if other is not own:
                        loss = loss + 0.2 * kd(own, other.detach(), 4.0).mean()
            return loss

        return measured(bench, all_students, step)

    return bare


def two_heads(bench: "CaseBench") -> Callable[[], float]:
    """0.5 CE of one head, 0.5 KL at T = 2 of the other, on labeled and on unlabeled images in one pass."""
    known, teacher = bench.config.schedule.batch_size, bench.bare_teacher
    batch, wanted = pixels(bench, 2 * known, bench.seen), targets(bench, known)

    def bare() -> float:
        student = bench.network(bench.config.students[0])
        head = nn.Linear(student.get_classifier().in_features, 100).to(bench.device)  # type: ignore[operator]

        def step() -> Tensor:
            with torch.no_grad():
                taught = teacher(batch).float()
            feature = student.forward_head(student.forward_features(batch), pre_logits=True)  # type: ignore[operator]
            ce = student.get_classifier()(feature[:known]).float()  # type: ignore[operator]
            own, taught = head(feature).float() / 2, taught / 2
            return 0.5 * F.cross_entropy(ce, wanted) + 0.5 * (
                kd(own[:known], taught[:known], 1.0).mean() + kd(own[known:], taught[known:], 1.0).mean()
            )

        return measured(bench, nn.ModuleList([student, head]), step)

    return bare
