"""The weighted terms that a student is trained with."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdrun.config.parts import TermConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup
from kdrun.core.seeding import subseed
from kdrun.losses.term import Pair, Term, TermSpec, width


class LossSet(nn.Module):
    """The weighted terms that a student is trained with; keys are the labels of the `loss` node."""

    def __init__(self, configs: Mapping[str, TermConfig], seed: int, spec: TermSpec) -> None:
        super().__init__()
        self.terms = nn.ModuleDict()
        self.factors: Mapping[str, float] = {}
        """Factors on the weights that move, by label; of the step at hand."""
        for label, config in configs.items():
            build = lookup("loss", config.name, f"loss.{label}.name")
            try:
                with torch.random.fork_rng(devices=[]):  # a term's parameters do not depend on the terms beside it
                    torch.manual_seed(subseed(seed, "term", label))
                    term: Term = build(config, spec)
                for feature in term.features:
                    width(spec.student_dims, feature, "student")
                for feature in _wanted(term, "teacher"):
                    width(spec.teacher_dims, feature, "teacher")
            except ConfigError as error:
                raise ConfigError(*(f"loss.{label}: {line}" for line in error.lines)) from None
            self.terms[label] = term

    def features(self, role: Literal["student", "teacher"] = "student") -> tuple[str, ...]:
        """Features that the terms ask of the student, or of the teacher."""
        wanted = (f for term in self._terms(None).values() for f in _wanted(term, role))
        return tuple(dict.fromkeys(wanted))

    @property
    def unmixed(self) -> tuple[str, ...]:
        """Whose logits on unmixed images the terms want."""
        return tuple(dict.fromkeys(t.unmixed for t in self._terms(None).values() if t.unmixed is not None))

    @property
    def unmixed_gradient(self) -> bool:
        """Whether a gradient flows through the student's."""
        return any(term.unmixed_gradient for term in self._terms(None).values())

    def target(self, pair: Pair, sample_weight: Tensor | None = None) -> dict[str, Tensor]:
        """{label: weighted scalar} of the terms against labels."""
        return self._reduce("target", pair, sample_weight)

    def teacher(self, pair: Pair, sample_weight: Tensor | None = None) -> dict[str, Tensor]:
        """{label: weighted scalar} of the terms against the teacher.

        Args:
            sample_weight: (B,), multiplied onto per-sample losses before the plain mean.
        """
        return self._reduce("teacher", pair, sample_weight)

    def metrics(self, pair: Pair) -> dict[str, Tensor]:
        """{<label>/<name>: scalar}: what the terms have to tell about this pair, for the log only."""
        terms = self._terms(None).items()
        return {f"{label}/{name}": value for label, term in terms for name, value in term.metrics(pair).items()}

    def after_step(self, pair: Pair) -> None:
        for term in self._terms(None).values():
            term.after_step(pair)

    def labels_of(self, against: str) -> set[str]:
        """Labels of the terms that work against the target, or against the teacher."""
        return set(self._terms(against))

    def _terms(self, against: str | None) -> dict[str, Term]:
        terms: dict[str, Any] = dict(self.terms.items())
        return {label: term for label, term in terms.items() if against in (None, _side(term))}

    def _reduce(self, against: str, pair: Pair, sample_weight: Tensor | None) -> dict[str, Tensor]:
        out = {}
        for label, term in self._terms(against).items():
            value = term(pair)
            if sample_weight is not None:
                if not term.per_sample:
                    raise ConfigError(f"loss.{label}: a statistic of the batch cannot be weighted per sample")
                value = value * sample_weight
            out[label] = term.config.weight * self.factors.get(label, 1.0) * value.mean()
        return out


def _side(term: Term) -> str:
    return term.works_against(term.config)


def _wanted(term: Term, role: str) -> tuple[str, ...]:
    """Features that a term asks of one of its networks."""
    if role == "student":
        return term.features
    if _side(term) != "teacher":
        return ()
    return term.features if term.teacher_features is None else term.teacher_features
