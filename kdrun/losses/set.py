"""The weighted terms that a student is trained with."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn

from kdrun.config.needs import Needs
from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.core.seeding import subseed
from kdrun.losses.term import Pair, TeacherStatistics, Term, TermSpec, factor, width


class LossSet(nn.Module):
    """The weighted terms that a student is trained with; keys are the labels of the `loss` node.

    Until a step is finished it remembers every pair that a term computed a loss of, for the term's metrics and memory.
    """

    def __init__(self, configs: Mapping[str, TermConfig], seed: int, spec: TermSpec) -> None:
        super().__init__()
        self.terms = nn.ModuleDict()
        self._factors: Mapping[str, float | Tensor] = {}  # on the weights that move, by label; of the step at hand
        self._seen: dict[str, list[Pair]] = {}
        for label, config in configs.items():
            build = lookup("loss", config.name, f"loss.{label}.name")
            try:
                with torch.random.fork_rng(devices=[]):  # a term's parameters do not depend on the terms beside it
                    torch.manual_seed(subseed(seed, "term", label))
                    term: Term = build(config, spec)
                for feature in term.needed.features:
                    width(spec.student_dims, feature, "student")
                for feature in term.needed.of_teacher:
                    width(spec.teacher_dims, feature, "teacher")
            except ConfigError as error:
                raise ConfigError(*(f"loss.{label}: {line}" for line in error.lines)) from None
            self.terms[label] = term
        self.needed = reduce(or_, (term.needed for _, term in self._terms()), Needs())
        """What the terms ask of their networks together."""

    @torch.no_grad()
    def before(self, teacher: TeacherStatistics) -> None:
        """Before the first step of a run: terms fill their buffers. Raises ConfigError with the term's label."""
        for label, term in self._terms():
            try:
                term.before(teacher)
            except ConfigError as error:
                raise ConfigError(*(f"loss.{label}: {line}" for line in error.lines)) from None

    def begin(self, factors: Mapping[str, float | Tensor]) -> None:
        """A new step.

        Args:
            factors: on the weights that move, by their keys.
        """
        self._factors = {label: factors.get(f"loss.{label}.weight", 1.0) for label in self.terms}
        self._seen = {}

    def target(self, pair: Pair, sample_weight: Tensor | None = None) -> dict[str, Tensor]:
        """{label: weighted scalar} of the terms against labels."""
        return self._reduce("target", pair, sample_weight)

    def teacher(self, pair: Pair, sample_weight: Tensor | None = None) -> dict[str, Tensor]:
        """{label: weighted scalar} of the terms against the teacher.

        Args:
            sample_weight: (B,), multiplied onto per-sample losses before the plain mean.
        """
        return self._reduce("teacher", pair, sample_weight)

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """{<label>/<name>: scalar}: what the terms have to tell, each the mean over the pairs of this step."""
        out: dict[str, Tensor] = {}
        for label, term in self._terms():
            told = [term.metrics(pair) for pair in self._seen.get(label, [])]
            for name in told[0] if told else ():
                values = [one[name] for one in told]
                out[f"{label}/{name}"] = values[0] if len(values) == 1 else torch.stack(values).mean()
        return out

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer step: each term sees its pairs of this step."""
        for label, term in self._terms():
            for pair in self._seen.get(label, []):
                term.after_step(replace(pair, student=pair.student.detach()))
        self._seen = {}

    def labels_of(self, side: str) -> set[str]:
        """Labels of the terms that work against the target, or against the teacher."""
        return {label for label, _ in self._terms(side)}

    def _terms(self, side: str | None = None) -> Iterator[tuple[str, Term]]:
        for label, term in self.terms.items():
            if isinstance(term, Term) and side in (None, term.needed.side):
                yield label, term

    def _reduce(self, side: str, pair: Pair, sample_weight: Tensor | None) -> dict[str, Tensor]:
        out = {}
        for label, term in self._terms(side):
            own = replace(pair, memo={})
            value = term(own)
            _refuse_value(value, f"loss.{label}: {term.config.name}", own)
            self._seen.setdefault(label, []).append(own)
            if sample_weight is not None:
                if not term.needed.per_sample:
                    raise ConfigError(f"loss.{label}: a statistic of the batch cannot be weighted per sample")
                value = value * sample_weight
            out[label] = factor(term.config.weight * self._factors.get(label, 1.0)) * value.mean()
        return out


def _refuse_value(value: object, name: str, pair: Pair) -> None:
    """Refuse what a term may not give; a look at shapes, which waits for nothing."""
    logits, page = pair.student.logits, "see docs/extend/loss.md"
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} gives a {type(value).__name__}, expected a tensor (B,) or (); {page}")
    if tuple(value.shape) not in ((), (len(logits),)):
        raise ConfigError(
            f"{name} gives {tuple(value.shape)}, expected ({len(logits)},), a loss for each image, or (); {page}"
        )
    if not value.is_floating_point():
        raise ConfigError(f"{name} gives {value.dtype}, expected floating-point numbers; {page}")
    if value.device != logits.device:
        raise ConfigError(f"{name} gives its loss on {value.device}, and the logits are on {logits.device}; {page}")
    if torch.is_grad_enabled() and logits.requires_grad and not value.requires_grad:
        raise ConfigError(f"{name} gives a loss without a gradient: it does not depend on what is trained; {page}")
