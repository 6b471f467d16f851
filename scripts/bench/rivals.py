"""A step with each loss term, and of each method, beside a bare step: cross entropy of the same student, by turns.

Everything that is registered is tried; what cannot run here is skipped and says why. A step is `CaseBench.bare`:
batches are there, so views and data are in no figure. What has a teacher stands beside a step with `kd` too, which has
the same teacher's pass; not methods that learn from unlabeled images without one. Nobody trained the teacher.
"""

import dataclasses
import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdrun.config.compose import Composer
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import lookup, registered
from kdrun.methods.semi_supervised import SemiSupervised
from kdrun.training.assembly import Assembly
from scripts.bench.cases import Case
from scripts.bench.harness import report, rounds
from scripts.bench.step import CaseBench

WAYS = ((), ("students=[{0},{0}]",), ("views=mixup",), ("method.views=[weak,strong]",))
"""What a part may ask for beside its name, the first that is taken; {0}: the student."""
ASKED = 300
"""Images that a term asks the teacher about before the first step, here noise."""
LABELED = 400
"""Labeled images where there are unlabeled ones, too."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where steps are compared."""

    told: str
    student: str
    teacher: str
    batch: int
    steps: int
    """Of each stretch."""
    images: int = 2000
    side: int = 32

    @property
    def common(self) -> tuple[str, ...]:
        return f"student={self.student}", f"schedule.batch_size={self.batch}"


TAUGHT = Setting("resnet56 -> resnet20, 32 px, 64", "resnet20", "resnet56", 64, 3)
GUESSED = Setting("wrn_16_2, 32 px, 8 labeled", "wrn_16_2", "resnet56", 8, 2)
"""Of methods that need no teacher to learn from unlabeled images."""


class StepBench(CaseBench):
    """With what terms ask the teacher before the first step."""

    def assembled(self) -> Assembly:
        run = super().assembled()
        if run.teacher is not None:
            dims = run.teacher.dims

            def asked(statistic: Any, feature: str | None = None, everything: bool = False) -> Tensor:
                target = torch.arange(ASKED) % run.arrays.num_classes
                logits = torch.rand(ASKED, run.arrays.num_classes)
                found = logits if feature is None else torch.rand(ASKED, dims[feature])
                return torch.as_tensor(statistic(found, logits, target))

            run.method.before_terms(asked)
        return run

    @property
    def rows(self) -> int:
        """Images a step, each view of one counted."""
        return sum(len(view.index) for samples in self._batches[0].values() for view in samples.views.values())


def composed(composer: Composer, student: str, words: tuple[str, ...]) -> tuple[tuple[str, ...], RunConfig]:
    """A run of these words with what it asks for beside them; the words in full. Raises ConfigError."""
    refused: ConfigError | None = None
    for way in WAYS:
        whole = (*words, *(word.format(student) for word in way))
        try:
            return whole, composer.typed([*whole, "tracker=none"])
        except ConfigError as error:
            refused = refused or error
    raise refused or ConfigError("there is no way")


def of_term(composer: Composer, name: str) -> tuple[Setting, tuple[str, ...]]:
    """Where a term is measured, and the words of its run. Raises ConfigError where it cannot be."""
    cls = lookup("loss", name, "loss")
    taught = cls.needs(cls.Config(name=name)).teacher
    method = ("method=distill", f"teacher={TAUGHT.teacher}") if taught else ("method=supervised", "teacher=none")
    return TAUGHT, composed(composer, TAUGHT.student, (*method, f"loss={name}", *TAUGHT.common))[0]


def of_method(composer: Composer, name: str) -> tuple[Setting, tuple[str, ...]]:
    """As `of_term`: what its YAML asks for, with the networks of the setting."""
    _, config = composed(composer, TAUGHT.student, (f"method={name}", f"dataset.num_labels={LABELED}"))
    needs = config.needs
    if not needs.trains or not config.students:
        raise ConfigError("trains no student")
    setting = GUESSED if issubclass(config.method_class, SemiSupervised) else TAUGHT
    words = [f"method={name}", *setting.common]
    words += [f"teacher={setting.teacher}"] if config.teacher.kind().present else []
    words += [f"dataset.num_labels={LABELED}"] if "unlabeled" in needs.streams else []
    return setting, composed(composer, setting.student, tuple(words))[0]


def references(setting: Setting) -> dict[str, tuple[str, ...]]:
    """What the others stand beside."""
    ce = ("method=supervised", "loss=ce", "teacher=none", *setting.common)
    kd = ("method=distill", "loss=kd", f"teacher={setting.teacher}", *setting.common)
    return {"ce": ce, "kd": kd} if setting is TAUGHT else {"ce": ce}


def bench(name: str, setting: Setting, words: tuple[str, ...]) -> StepBench:
    steps, images, side = setting.steps, setting.images, setting.side
    return StepBench(Case(name, setting.told, words, steps, steps, 0, 0, images=images, side=side))


KINDS: dict[str, Callable[[Composer, str], tuple[Setting, tuple[str, ...]]]] = {"loss": of_term, "method": of_method}


def bench_rivals(cases: str = "") -> None:
    """Every term and method, or those named."""
    asked = cases.split(",") if cases else []
    known = {name for kind in KINDS for name in registered(kind)}
    if unknown := [name for name in asked if name not in known]:
        raise SystemExit(f"cases: unknown {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
    beside: dict[Setting, dict[str, StepBench]] = {}
    for kind, find in KINDS.items():
        for name in registered(kind):
            if asked and name not in asked:
                continue
            try:
                with Composer() as composer:
                    setting, words = find(composer, name)
                one = bench(name, setting, words)
                if setting not in beside:
                    beside[setting] = {key: bench(key, setting, given) for key, given in references(setting).items()}
                measure(kind, name, setting, one, beside[setting])
            except (KdrunError, ImportError) as error:
                print(f"{kind} {name}: skipped, {str(error).splitlines()[0]}", flush=True)


def measure(kind: str, name: str, setting: Setting, one: StepBench, beside: Mapping[str, StepBench]) -> None:
    """Print and keep the figures of a term or a method; the k-th round begins with the k-th."""
    taught = one.teacher is not None
    timed = {"step": one, **{key: other for key, other in beside.items() if taught or other.teacher is None}}
    names = list(timed)
    found: dict[str, list[float]] = {key: [] for key in names}
    for k in range(rounds()):
        for key in names[k % len(names) :] + names[: k % len(names)]:
            gc.collect()
            found[key].append(timed[key].bare())
    told = {"case": name, "registry": kind, "networks": setting.told}
    report(f"{kind} {name}, {setting.told}: step", [1e3 * value for value in found["step"]], "ms", kind="step", **told)
    for key in names[1:]:
        ratios = [a / b for a, b in zip(found["step"], found[key], strict=True)]
        report(f"  step / step with {key}", ratios, "", kind=f"step / {key}", **told)
    report("  images a step, all views", [one.rows], "", kind="images", **told)
