"""The whole plug-in contract of an algorithm; a page for authors is docs/extend/method.md.

An author writes `Config`, `needs`, `step` and, where the defaults do not fit, `predict`, `requires`, `parts`,
`contradictions`, `batch_sizes`, `headline`; few need `before`, `backward` or `choice`. Everything else (networks,
teacher, losses, optimizer, evaluation, checkpoints) is given.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, reduce
from operator import or_
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.config.needs import Needs, refuse_gone
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.data.views.view import Batch, View
from kdrun.losses.set import LossSet
from kdrun.losses.term import Pair, TeacherStatistics, TermSpec, UnmixedOutputs, factor
from kdrun.methods.choice import Choice
from kdrun.methods.pool import Start
from kdrun.methods.requires import head_warmup_runs, teacher_runs
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.network import Network, kept_statistics
from kdrun.models.output import Output
from kdrun.teachers.teacher import Teacher

C = TypeVar("C", bound=MethodConfig)


class Method(nn.Module, Generic[C]):
    """Base of all algorithms; C is the class of its `Config`. Mutable state belongs into buffers, so that `state_dict`
    is the whole checkpoint."""

    Config: ClassVar[type[MethodConfig]]
    """The schema of its YAML node."""
    equation: ClassVar[str] = ""
    """The loss in the names of its `Config`, in a line: p are probabilities, z logits, y the label."""
    source: ClassVar[str] = ""
    """The paper and its arXiv id."""
    alone: ClassVar[Mapping[str, str]] = {}
    """What `predict` names -> the network that it is, and nothing more, where the two have different names."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_gone(cls, _GONE, "docs/extend/method.md")

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.setup = setup
        self.students = nn.ModuleDict()
        self.loss_sets = nn.ModuleDict()
        init = self.needs(config).init
        names = ["student"] if len(config.students) == 1 else [f"student_{k + 1}" for k in range(len(config.students))]
        for k, (name, model) in enumerate(zip(names, config.students, strict=True)):
            twin = _twin(config.students, k)
            network = setup.network(model, config.seed, f"{init}{twin + 1 if twin else ''}")
            self.students[name] = network
            self.loss_sets[name] = self._loss_set(network.dims, setup.teacher.dims if setup.teacher else {}, network)

    # -- what an algorithm writes

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        """What it asks of the run: streams and views, a teacher, students, sides of losses; and whether its step is a
        mean over the rows of a batch, which a run over several processes needs to know."""
        return Needs()

    def step(self, batch: Batch, ctx: Context) -> Step:
        """The losses of one batch. No `.item()`, no boolean-mask indexing, no branch on data."""
        raise NotImplementedError

    def predict(self, view: View) -> dict[str, Tensor]:
        """What is evaluated, in one pass: network -> logits or log-probabilities (B, C)."""
        return {name: net(view).logits for name, net in self.students.items()}

    @classmethod
    def requires(cls, config: RunConfig) -> dict[str, RunConfig]:
        """Other runs that must be finished first, by role."""
        return {**head_warmup_runs(config), **teacher_runs(config, config.teacher)}

    def parts(self, student: str) -> list[nn.Module]:
        """Modules beside a student's network that are trained as it is: with its learning rate and its clipping."""
        return [self.loss_sets[student]]

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        """What in the configuration does not go together, one line each."""
        return []

    @classmethod
    def settled(cls, config: RunConfig) -> RunConfig:
        """What is run, where `config` describes something more; once it is typed, and again where it is read."""
        return config

    @classmethod
    def batch_sizes(cls, config: RunConfig) -> dict[str, int]:
        """Images a step, by stream."""
        return dict.fromkeys(cls.needs(config).streams, config.schedule.batch_size)

    @property
    def headline(self) -> str:
        """The network that tables show."""
        return next(iter(self.students))

    def before(self, start: Start) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """Called once on the training device: before the first step, or before a run goes on from a checkpoint.

        Returns:
            name -> ((N, ...) values for `Samples.extra` of each image of the train array, figures for the record).
        """
        return {}

    def backward(self, losses: Mapping[str, Tensor], scale: Callable[[Tensor], Tensor]) -> None:
        """Fill the gradients, which are None before; with `schedule.accumulate`, add to those of earlier parts.

        Args:
            losses: what `step` gave.
            scale: the factor of fp16, to be put on what is differentiated.
        """
        scale(torch.stack(list(losses.values())).sum()).backward()

    @property
    def averages(self) -> bool:
        """Whether `backward` itself averages gradients over ranks, because what it does is not linear in them."""
        return False

    @property
    def probes(self) -> bool:
        """Whether `probe` is to be called."""
        return False

    def probe(self, batch: Batch) -> None:
        """After an optimizer step, without gradient, in evaluation mode and with the averaged weights where there are:
        what is learned from the networks' own predictions. As `step`, without a look at data by the host."""

    def choice(self) -> Choice | None:
        """What is chosen on the validation images, at each evaluation; None: nothing."""
        return None

    # -- what it may use

    @property
    def spec(self) -> C:
        """`method` of the configuration."""
        return self.spec_of(self.config)

    @classmethod
    def spec_of(cls, config: RunConfig) -> C:
        """`method` of a configuration of this method."""
        return cast("C", config.method)

    @property
    def teacher(self) -> Teacher | None:
        return self.setup.teacher

    def networks(self) -> dict[str, Network]:
        """The students by name."""
        return {name: net for name, net in self.students.items() if isinstance(net, Network)}

    def kept(self) -> dict[str, Network]:
        """Whose weights a run leaves, each in a file: the students, then what the method makes of them."""
        return self.networks()

    def losses(self, k: int = 0) -> LossSet:
        """The loss terms of the k-th student."""
        return self._loss_sets()[k]

    @cached_property
    def needed(self) -> Needs:
        """What it asks of its networks together with all its loss terms."""
        return reduce(or_, (losses.needed for losses in self._loss_sets()), self.needs(self.config))

    def weight(self, name: str, ctx: Context) -> float | Tensor:
        """The weight `method.<name>` in force in this step."""
        return factor(float(getattr(self.spec, name)) * ctx.factors.get(f"method.{name}", 1.0))

    def pair(self, batch: Batch, ctx: Context, stream: str = "labeled", view: str = "weak", k: int = 0) -> Pair:
        """The k-th student, and the teacher if there is one, on one view of a stream."""
        samples = batch[stream]
        seen = samples.views[view]
        needed = self.losses(k).needed
        # the teacher first: its activations are gone before the student's, which stay for the backward pass, are made
        teacher = self.teacher(seen, needed.of_teacher) if self.teacher else None
        student: Output = list(self.students.values())[k](seen, needed.features)
        unmixed = self._unmixed(seen, k)
        return Pair(student, teacher, samples.target, seen.index, ctx.progress, ctx.draw, unmixed, view=view)

    # -- what the run calls

    def forward(self, batch: Batch, ctx: Context) -> Step:
        """`step`, and what the loss terms have to tell about the pairs that they saw in it."""
        for losses in self._loss_sets():
            losses.begin(ctx.factors, ctx.goes_on)
        out: object = self.step(batch, ctx)
        if not isinstance(out, Step):
            name = self.config.method.name
            raise ConfigError(
                f"method={name}: step gives a {type(out).__name__}, expected Step; see docs/extend/method.md"
            )
        told: dict[str, Tensor] = {}
        for name, losses in zip(self.loss_sets, self._loss_sets(), strict=True):
            prefix = "" if len(self.loss_sets) == 1 else f"{name}/"
            told |= {f"{prefix}{key}": value for key, value in losses.metrics().items()}
        return dataclasses.replace(out, metrics={**out.metrics, **told})

    def before_terms(self, teacher: TeacherStatistics) -> None:
        """Before the first step of a run with a teacher: what its loss terms make of it."""
        for losses in self._loss_sets():
            losses.before(teacher)

    def finish_step(self) -> None:
        """After the optimizer step: each term sees its pairs once more, to update a memory."""
        for losses in self._loss_sets():
            losses.after_step()

    def _loss_set(
        self, student_dims: Mapping[str, int], teacher_dims: Mapping[str, int], student: nn.Module | None = None
    ) -> LossSet:
        target, teacher = self.setup.train_target, self.teacher
        own, others = (getattr(net, "reductions", {}) for net in (student, teacher and teacher.network))
        spec = TermSpec(
            self.setup.num_classes, len(target), student_dims, teacher_dims, target,
            teacher_classifier=teacher.classifier if teacher else None, teacher_source=self.config.teacher.source,
            student_classifier=getattr(student, "linear_classifier", None),
            student_reductions=own, teacher_reductions=others,
            teacher_norms=getattr(teacher and teacher.network, "norms", {}),
        )  # fmt: skip
        return LossSet({} if self.setup.restoring else self.config.losses, self.config.seed, spec)

    def _loss_sets(self) -> list[LossSet]:
        return [losses for losses in self.loss_sets.values() if isinstance(losses, LossSet)]

    def _unmixed(self, view: View, k: int) -> UnmixedOutputs | None:
        """What the terms of the k-th student ask for about the images before they were mixed.

        The student's is a pass of its own after that of the mixed images, in training mode: batch normalisation takes
        the statistics of the unmixed batch and leaves the running ones alone. So a term that wants it adds a loss, and
        changes neither what the other terms see in this step nor what is kept for evaluation.
        """
        needed, source = self.losses(k).needed, view.unmixed
        if not needed.unmixed or source is None:
            return None
        student = teacher = None
        if "student" in needed.unmixed:
            network = list(self.students.values())[k]
            with kept_statistics(network), nullcontext() if needed.unmixed_gradient else torch.no_grad():
                student = network(source.pixels)
        if "teacher" in needed.unmixed and self.teacher is not None:
            teacher = self.teacher(source.pixels)
        return UnmixedOutputs(student, teacher, source.partner, source.share)


def _twin(students: Sequence[ModelConfig], k: int) -> int:
    """Place of the k-th student among those of the same network, sorted by the rest of their configuration.

    Networks are seeded by what they are, not by their place in the list; of two of a kind each must start elsewhere.
    """
    kind = [(m.name, m.args) for m in students]
    twins = sorted((m.model_dump_json(), i) for i, m in enumerate(students) if kind[i] == kind[k])
    return [i for _, i in twins].index(k)


_GONE = {
    "streams": "needs, Needs(streams=...)", "loss_roles": "needs, Needs(sides=...)",
    "num_students": "needs, Needs(students=...)", "always_teacher": "needs, Needs(teacher=True)",
    "trains": "needs, Needs(trains=False)", "mixes": "needs, Needs(takes_mixed=True)",
    "reads_names": "needs, Needs(class_names=True)", "role": "needs, Needs(init=...)",
    "evaluations_matter": "needs, Needs(evaluations=True)", "needs_validation": "needs, Needs(validation=...)",
    "teacher_features": "needs, Needs(teacher_features=...)", "findings": "needs, Needs(unsure_errors=True)",
    "predictors": "predict(view)", "reopened": "Setup.restoring", "artifacts": "before(start)",
    "prepare": "before(start)", "start": "before(start)", "settle": "choice()", "consulted": "choice()",
    "choices": "choice()", "fix": "choice()", "keep": "nothing: loss terms remember what they saw",
    "after_step": "nothing: do it at the beginning of step",
}  # fmt: skip
