"""The whole plug-in contract of an algorithm: Method, Step, Context, Setup, Teacher.

A method declares the streams and views that it wants and the roles that losses may fill, and has one `step`. Everything
else (networks, teacher, losses, optimizer, evaluation, checkpoints) is given.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.data.views.view import Batch, Predictor, View
from kdrun.losses.set import LossSet
from kdrun.losses.term import Pair, TermSpec, UnmixedOutputs
from kdrun.methods.pool import Pool
from kdrun.methods.requires import head_warmup_runs, teacher_runs
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.network import Network, kept_statistics
from kdrun.models.output import Output
from kdrun.teachers.teacher import Teacher


class Method(nn.Module):
    """Base of all algorithms. Mutable state belongs into buffers, so that `state_dict` is the whole checkpoint."""

    Config: ClassVar[type[MethodConfig]]
    streams: ClassVar[Mapping[str, tuple[str, ...]]] = {"labeled": ("weak",)}
    """Stream -> the views that it should carry."""
    loss_roles: ClassVar[tuple[str, ...]] = ("target",)
    """Which losses the `loss` group may hold: against the target, the teacher, or both."""
    num_students: ClassVar[tuple[int, int | None]] = (1, 1)
    """Fewest and most; None: any number."""
    always_teacher: ClassVar[bool] = False
    """Whether a teacher is needed even when no loss term asks for one."""
    trains: ClassVar[bool] = True
    """False: nothing is trained, and the teacher is evaluated alone."""
    mixes: ClassVar[bool] = False
    """Whether the images of its streams may be mixed (views.mix): it must take labels (B, classes) then."""
    reads_names: ClassVar[bool] = False
    """Whether it depends on the names of the classes."""
    alone: ClassVar[Mapping[str, str]] = {}
    """Predictor -> the network that it is, and nothing more, where the two have different names."""
    role: ClassVar[str] = ""
    """Part of the seed of the initialisation, where two networks of one name must differ."""

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.setup = setup
        self._pairs: dict[int, Pair] = {}
        self.students = nn.ModuleDict()
        self.loss_sets = nn.ModuleDict()
        names = ["student"] if len(config.students) == 1 else [f"student_{k + 1}" for k in range(len(config.students))]
        for k, (name, model) in enumerate(zip(names, config.students, strict=True)):
            twin = _twin(config.students, k)
            network = setup.network(model, config.seed, f"{self.role}{twin + 1 if twin else ''}")
            self.students[name] = network
            self.loss_sets[name] = LossSet(
                config.losses,
                config.seed,
                TermSpec(
                    setup.num_classes, len(setup.train_target), network.dims,
                    setup.teacher.dims if setup.teacher else {}, setup.train_target,
                ),
            )  # fmt: skip

    # -- what an algorithm writes

    def step(self, batch: Batch, ctx: Context) -> Step:
        """The losses of one batch. No `.item()`, no boolean-mask indexing, no branch on data."""
        raise NotImplementedError

    def after_step(self, ctx: Context) -> None:
        """Called once after each optimizer step."""

    def predictors(self) -> dict[str, Predictor]:
        """The networks that are evaluated: name -> function from a view to logits or log-probabilities (B, C)."""
        return {name: predictor(net) for name, net in self.students.items()}

    @classmethod
    def requires(cls, config: RunConfig) -> dict[str, RunConfig]:
        """Other runs that must be finished first, by role."""
        return {**head_warmup_runs(config), **teacher_runs(config, config.teacher)}

    @classmethod
    def reopened(cls, config: RunConfig) -> RunConfig:
        """The configuration of a finished run without what only its training needs."""
        return config.replace(losses={})

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        """What in the configuration does not go together, one line each."""
        return []

    @classmethod
    def evaluations_matter(cls, config: RunConfig) -> bool:
        """Whether the result depends on how often networks are evaluated; then the cadence is part of the run key."""
        return False

    @classmethod
    def needs_validation(cls, config: RunConfig) -> str | None:
        """What follows validation images, as a message begins: `method.search: needs`. None: nothing."""
        return None

    @classmethod
    def artifacts(
        cls, config: RunConfig, required: Mapping[str, Path], pool: Pool
    ) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """What is made of the pool before training, from the directories of the runs that `requires` names.

        Returns:
            name -> ((N, ...) values for `Samples.extra`, figures for the record).
        """
        return {}

    @classmethod
    def batch_sizes(cls, config: RunConfig) -> dict[str, int]:
        """Images a step, by stream."""
        return dict.fromkeys(cls.streams, config.schedule.batch_size)

    def parts(self, student: str) -> list[nn.Module]:
        """Modules beside a student's network that are trained as it is: with its learning rate and its clipping."""
        return [self.loss_sets[student]]

    def backward(self, losses: Mapping[str, Tensor], scale: Callable[[Tensor], Tensor]) -> None:
        """Fill the gradients, which are None before.

        Args:
            losses: what `step` gave.
            scale: the factor of fp16, to be put on what is differentiated.
        """
        scale(torch.stack(list(losses.values())).sum()).backward()

    def settle(self, logits: dict[tuple[str, str], Tensor], val_target: Tensor | None) -> dict[tuple[str, str], Tensor]:
        """Called at each evaluation: choose by the validation images, in buffers, and give the predictions after that.

        Args:
            logits: (split, network) -> (M, classes), as the predictors gave them.
            val_target: (M,) int64 labels of the validation images, None where there are none. The test images' labels
                are not given: they choose nothing.
        """
        return logits

    def consulted(self) -> dict[str, Predictor]:
        """What `settle` gets of each split beside logits, under (split, name): (M, anything). It is not evaluated."""
        return {}

    def fix(self) -> None:
        """Put the configuration's values where a finished run keeps what it chose; called when it is opened again."""

    def choices(self) -> dict[str, float]:
        """What `settle` chose, as metrics `val/<net>/<name>`."""
        return {}

    def prepare(self, batches: Callable[[int], Batch], first: int) -> None:
        """Called on the training device before the first step, but not where a run goes on from a checkpoint.

        Args:
            batches: step -> its batch.
            first: the first number that is no step of this run: batches from there on are drawn for nothing else.
        """

    # -- what it may use

    def start(self, required: Mapping[str, Path]) -> None:
        """Give each student with a head warm-up the weights of that run.

        Args:
            required: role -> directory of the finished run.
        """
        for role in head_warmup_runs(self.config):
            if role not in required:
                raise ConfigError(
                    f"method={self.config.method.name}: its `requires` leaves out the {role} of a student"
                )
            self.networks()[role.replace("head_warmup", "student")].load(required[role] / "student.safetensors")

    def forward(self, batch: Batch, ctx: Context) -> Step:
        """`step`, and what the loss terms have to tell about the pairs that it kept."""
        for k in range(len(self.loss_sets)):
            losses = self.losses(k)
            losses.factors = {label: ctx.factors.get(f"loss.{label}.weight", 1.0) for label in losses.terms}
        out = self.step(batch, ctx)
        told: dict[str, Tensor] = {}
        with torch.no_grad():
            for k, pair in self._pairs.items():
                student = "" if len(self.students) == 1 else f"{list(self.students)[k]}/"
                told |= {f"{student}{name}": value for name, value in self.losses(k).metrics(pair).items()}
        return dataclasses.replace(out, metrics={**out.metrics, **told})

    def weight(self, name: str, ctx: Context) -> float:
        """The weight `method.<name>` in force in this step."""
        return float(getattr(self.config.method, name) * ctx.factors.get(f"method.{name}", 1.0))

    @property
    def teacher(self) -> Teacher | None:
        return self.setup.teacher

    def findings(self, logits: Mapping[tuple[str, str], Tensor], targets: Mapping[str, Tensor]) -> list[str]:
        """Warnings for the record once the run is done, one line each.

        Args:
            logits: (split, network) -> (N, classes), of every predictor and of `teacher` where there is one.
            targets: split -> (N,) int64.
        """
        return []

    @property
    def headline(self) -> str:
        """The network that tables show."""
        return next(iter(self.students))

    def networks(self) -> dict[str, Network]:
        """The students by name."""
        return {name: net for name, net in self.students.items() if isinstance(net, Network)}

    def losses(self, k: int = 0) -> LossSet:
        """The loss terms of the k-th student."""
        found = list(self.loss_sets.values())[k]
        if not isinstance(found, LossSet):
            raise TypeError("loss_sets holds LossSet only")
        return found

    def teacher_features(self) -> tuple[str, ...]:
        """What `step` asks the teacher for beside its logits."""
        wanted = (name for k in range(len(self.students)) for name in self.losses(k).features("teacher"))
        return tuple(dict.fromkeys(wanted))

    def pair(self, batch: Batch, ctx: Context, stream: str = "labeled", view: str = "weak", k: int = 0) -> Pair:
        """The k-th student, and the teacher if there is one, on one view of a stream."""
        samples = batch[stream]
        seen = samples.views[view]
        losses = self.losses(k)
        # the teacher first: its activations are gone before the student's, which stay for the backward pass, are made
        teacher = self.teacher(seen, losses.features("teacher")) if self.teacher else None
        student: Output = list(self.students.values())[k](seen, losses.features())
        unmixed = self._unmixed(seen, k)
        return self.keep(Pair(student, teacher, samples.target, seen.index, ctx.progress, ctx.draw, unmixed), k)

    def _unmixed(self, view: View, k: int) -> UnmixedOutputs | None:
        """What the terms of the k-th student ask for about the images before they were mixed.

        The student's is a pass of its own after that of the mixed images, in training mode: batch normalisation takes
        the statistics of the unmixed batch and leaves the running ones alone. So a term that wants it adds a loss, and
        changes neither what the other terms see in this step nor what is kept for evaluation.
        """
        losses = self.losses(k)
        wanted, source = losses.unmixed, view.unmixed
        if not wanted or source is None:
            return None
        student = teacher = None
        if "student" in wanted:
            network = list(self.students.values())[k]
            with kept_statistics(network), nullcontext() if losses.unmixed_gradient else torch.no_grad():
                student = network(source.pixels)
        if "teacher" in wanted and self.teacher is not None:
            teacher = self.teacher(source.pixels)
        return UnmixedOutputs(student, teacher, source.partner, source.share)

    def keep(self, pair: Pair, k: int = 0) -> Pair:
        """Have the k-th student's terms log about this pair, and see it after the step. In all steps or in none."""
        self._pairs[k] = pair
        return pair

    @torch.no_grad()
    def finish_step(self, ctx: Context) -> None:
        """After the optimizer step: each term sees its last pair (to update a memory), then `after_step`."""
        for k, pair in self._pairs.items():
            self.losses(k).after_step(dataclasses.replace(pair, student=pair.student.detach()))
        self._pairs.clear()
        self.after_step(ctx)


def _twin(students: Sequence[ModelConfig], k: int) -> int:
    """Place of the k-th student among those of the same network, sorted by the rest of their configuration.

    Networks are seeded by what they are, not by their place in the list; of two of a kind each must start elsewhere.
    """
    kind = [(m.name, m.args) for m in students]
    twins = sorted((m.model_dump_json(), i) for i, m in enumerate(students) if kind[i] == kind[k])
    return [i for _, i in twins].index(k)


def predictor(network: nn.Module) -> Predictor:
    """The logits of a network as a function of a view."""

    def predict(view: View) -> Tensor:
        logits: Tensor = network(view).logits
        return logits

    return predict
