"""Loss terms beside a student's step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdrun.config.model import ModelConfig
from kdrun.core.registry import lookup
from kdrun.losses.term import Pair, TermSpec
from kdrun.models.network import build_network
from kdrun.models.output import Output
from scripts.bench.harness import report, rounds, seconds_of

TERMS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ("ce", "kd", "ttm", "wttm", "dkd", "dist", "nkd", "crd")},
    **{name: {"name": name} for name in ("itrd", "fitnet", "at", "rkd", "pkt", "vid")},
    **{name: {"name": name} for name in ("srrl", "reviewkd", "ctkd", "rld")},
    **{name: {"name": name} for name in ("nd", "wkd_logit", "wkd_feature", "binary_kl")},
    "kd, zscore": {"name": "kd", "standardize": "zscore"},
}


def bench_losses(names: tuple[str, str] = ("resnet8x4", "resnet32x4"), side: int = 32, calls: int = 20) -> None:
    """Each loss term, forward and backward, beside a student's step of resnet8x4: 100 classes, 32 px, batch 64.

    A term gets the features that it asks for; its share holds its gradient down to logits and features, its metrics and
    `after_step`. The teacher's pass is in neither.
    """
    labels = torch.arange(64) % 100
    plain: dict[str, Any] = {"num_classes": 100, "in_chans": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    student, teacher = (
        build_network(ModelConfig(name=name), seed=0, **plain).to(memory_format=torch.channels_last).train()
        for name in names
    )
    pixels = torch.rand(64, 3, side, side).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, foreach=True)
    every = torch.arange(50_000) % 100
    spec = TermSpec(100, 50_000, student.dims, teacher.dims, every, teacher.linear_classifier)

    def asked(statistic: Any, feature: str | None = None, everything: bool = False) -> Tensor:
        """Of 300 images that are noise: what comes of them costs a step as much."""
        found = torch.rand(300, 100 if feature is None else teacher.dims[feature])
        return torch.as_tensor(statistic(found, torch.rand(300, 100), every[:300]))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(student(pixels).logits, labels).backward()
        optimizer.step()

    terms = {}
    for what, fields in TERMS.items():
        cls = lookup("loss", fields["name"], what)
        term = cls(cls.Config(**fields), spec)
        term.before(asked)
        terms[what] = call_of(term, student, teacher, pixels, labels)
    seconds_of(step, 2)
    for call in terms.values():
        seconds_of(call, max(calls // 4, 1))
    steps: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in terms}
    for _ in range(rounds()):
        steps.append(seconds_of(step, 3))
        for name, call in terms.items():
            shares[name].append(100 * seconds_of(call, calls) / steps[-1])
    report(f"student step of {names[0]}, batch 64", [1e3 * value for value in steps], "ms")
    for name, values in shares.items():
        report(f"  {name}: forward, backward, metrics", values, "% of the step")


def call_of(term: Any, student: Any, teacher: Any, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    """What one step costs more by this term, its features and logits already there."""
    with torch.no_grad():
        seen = student(pixels, term.needed.features)
        taught = teacher(pixels, term.needed.of_teacher)
    leaves = [v.clone().requires_grad_() for v in (seen.logits, *seen.features.values())]
    out = Output(leaves[0], dict(zip(seen.features, leaves[1:], strict=True)))
    index = torch.arange(len(labels))
    pair = Pair(out, taught, labels, index, 0.5, lambda *shape: torch.rand(shape))

    def run() -> None:
        term.zero_grad(set_to_none=True)
        for leaf in leaves:
            leaf.grad = None
        term(pair).mean().backward()
        with torch.no_grad():
            term.metrics(pair)
            term.after_step(pair)

    return run
