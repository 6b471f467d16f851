"""The weighted terms that a student is trained with."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
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
from kdrun.core.world import world
from kdrun.losses.term import Pair, TeacherStatistics, Term, TermSpec, UnmixedOutputs, factor, width
from kdrun.models.output import Output


class LossSet(nn.Module):
    """The weighted terms that a student is trained with; keys are the labels of the `loss` node.

    Until a step is finished it remembers every pair that a term computed a loss of, for the term's metrics and memory.
    Over several ranks, terms that say so (`Needs.over_ranks`) have pairs with the images of all ranks.
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
        self._earlier: list[tuple[Term, Pair]] = []  # pairs of earlier parts of this step
        self._whole: list[tuple[Pair, Pair]] = []  # pairs of this step, and these over all ranks
        self.needed = reduce(or_, (term.needed for _, term in self._terms()), Needs(over_ranks="mean"))
        """What the terms ask of their networks together."""

    @torch.no_grad()
    def before(self, teacher: TeacherStatistics) -> None:
        """Before the first step of a run: terms fill their buffers. Raises ConfigError with the term's label."""
        for label, term in self._terms():
            try:
                term.before(teacher)
            except ConfigError as error:
                raise ConfigError(*(f"loss.{label}: {line}" for line in error.lines)) from None

    def begin(self, factors: Mapping[str, float | Tensor], goes_on: bool = False) -> None:
        """A new step.

        Args:
            factors: on the weights that move, by their keys.
            goes_on: it is another part of the same step.
        """
        self._earlier = [*self._earlier, *self._remembered()] if goes_on else []
        self._factors = {label: factors.get(f"loss.{label}.weight", 1.0) for label in self.terms}
        self._seen, self._whole = {}, []

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
        for term, pair in (*self._earlier, *self._remembered()):
            term.after_step(pair)
        self._seen, self._whole, self._earlier = {}, [], []

    def _remembered(self) -> list[tuple[Term, Pair]]:
        """What `after_step` is called with, of terms that have one."""
        return [
            (term, replace(pair, student=pair.student.detach()))
            for label, term in self._terms()
            if type(term).after_step is not Term.after_step
            for pair in self._seen.get(label, [])
        ]

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
            gathers = term.needed.over_ranks == "gathered" and world().size > 1
            own = replace(self._gathered(pair) if gathers else pair, memo={})
            value = term(own)
            _refuse_value(value, f"loss.{label}: {term.config.name}", own, term.needed)
            self._seen.setdefault(label, []).append(own)
            if sample_weight is not None:
                if not value.ndim:
                    raise ConfigError(f"loss.{label}: a statistic of the batch cannot be weighted per sample")
                value = value * (world().gathered(sample_weight) if gathers else sample_weight)
            out[label] = factor(term.config.weight * self._factors.get(label, 1.0)) * value.mean()
        return out

    def _gathered(self, pair: Pair) -> Pair:
        """The pair with the rows of all ranks, and of the features those that terms need which are given it so."""
        for own, whole in self._whole:
            if own is pair:
                return whole
        asked = [term.needed for _, term in self._terms() if term.needed.over_ranks == "gathered"]
        whole = gathered(
            pair, {name for needs in asked for name in needs.features},
            {name for needs in asked for name in needs.of_teacher},
        )  # fmt: skip
        self._whole.append((pair, whole))
        return whole


def gathered(pair: Pair, features: AbstractSet[str], teacher_features: AbstractSet[str]) -> Pair:
    """A pair over all ranks, with these features; the student's side has its gradient."""
    here = world()

    def of(output: Output | None, names: AbstractSet[str]) -> Output | None:
        if output is None:
            return None
        kept = {name: here.gathered(value) for name, value in output.features.items() if name in names}
        return Output(here.gathered(output.logits), kept)

    def draw(count: int, *shape: int) -> Tensor:
        if count % here.size:
            raise ConfigError(
                f"draw({count}, ...) is for the images of a pair, which are those of {here.size} processes"
            )
        return here.gathered(pair.draw(count // here.size, *shape))  # the rows that ranks have of what one would draw

    unmixed = pair.unmixed
    if unmixed is not None:
        unmixed = UnmixedOutputs(
            of(unmixed.student, set()), of(unmixed.teacher, set()), here.gathered(unmixed.partner),
            here.gathered(unmixed.share),
        )  # fmt: skip
    student = of(pair.student, features) or pair.student
    target = None if pair.target is None else here.gathered(pair.target)
    return Pair(
        student, of(pair.teacher, teacher_features), target, here.gathered(pair.index), pair.progress, draw, unmixed,
        view=pair.view,
    )  # fmt: skip


def _refuse_value(value: object, name: str, pair: Pair, needs: Needs) -> None:
    """Refuse what a term may not give; a look at shapes, which waits for nothing."""
    logits, page = pair.student.logits, "see docs/extend/loss.md"
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} gives a {type(value).__name__}, expected a tensor (B,) or (); {page}")
    if tuple(value.shape) not in ((), (len(logits),)):
        raise ConfigError(
            f"{name} gives {tuple(value.shape)}, expected ({len(logits)},), a loss for each image, or (); {page}"
        )
    if not value.ndim and needs.per_sample:  # the sum over a batch would count as often as the batch has images
        raise ConfigError(
            f"{name} gives one number for the batch, expected ({len(logits)},), a loss for each image; for a "
            f'statistic of the batch say Needs(per_sample=False, over_ranks="gathered") in its needs; {page}'
        )
    if not value.ndim and needs.over_ranks == "mean" and world().size > 1:
        raise ConfigError(
            f'{name} gives a statistic of the batch, and says over_ranks="mean", as of a loss for each image; say '
            f'"gathered" in its needs; {page}'
        )
    if not value.is_floating_point():
        raise ConfigError(f"{name} gives {value.dtype}, expected floating-point numbers; {page}")
    if value.device != logits.device:
        raise ConfigError(f"{name} gives its loss on {value.device}, and the logits are on {logits.device}; {page}")
    if torch.is_grad_enabled() and logits.requires_grad and not value.requires_grad:
        raise ConfigError(f"{name} gives a loss without a gradient: it does not depend on what is trained; {page}")
