"""The whole plug-in contract of an algorithm: Method, Step, Context, Setup, Teacher.

A method declares the streams and views that it wants and the roles that losses may fill, and has one `step`. Everything
else (networks, teacher, losses, optimizer, evaluation, checkpoints) is given.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from kdrun.artifacts import Pool
from kdrun.config import (
    MethodConfig,
    MixConfig,
    ModelConfig,
    RunConfig,
    TeacherConfig,
    TermConfig,
    effective,
    plugged_classes,
    run_key,
)
from kdrun.data.views import Batch, View
from kdrun.device import send
from kdrun.errors import ConfigError
from kdrun.losses.term import LossSet, Pair, TermSpec, UnmixedOutputs
from kdrun.models.network import Network, Output, build_network, kept_statistics
from kdrun.registry import lookup, plugin_hashes
from kdrun.schedule import ScheduleConfig
from kdrun.seeding import generator, subseed

Predictor = Callable[[View], Tensor]


@dataclass(frozen=True)
class Guesses:
    """Labels that a method gave to unlabeled images. The loop holds them against the hidden ones, for the log only."""

    index: Tensor
    """(B,) int64, positions in the train array."""
    label: Tensor
    """(B,) int64."""
    used: Tensor
    """(B,) bool, whether the step learned from it."""


@dataclass(frozen=True)
class Step:
    """What a method returns for a batch."""

    losses: dict[str, Tensor]
    """Named scalars, weighted already; their sum is minimised. Keys: `<term>` or `<net>/<term>`."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Named scalars to log, detached."""
    guesses: Guesses | None = None


class Context:
    """Where in the run a step stands, and its random numbers."""

    def __init__(
        self, seed: int, step: int, total_steps: int, device: torch.device, factors: Mapping[str, float] | None = None
    ) -> None:
        self.factors = factors or {}
        """Factors on the weights that move (`ramps`), by their keys."""
        self.step = step
        self.progress = step / total_steps
        self.device = device
        self._seed = seed
        self._generator: Generator | None = None

    def again(self) -> "Context":
        """The same step with its numbers unused: what one student draws does not depend on the others."""
        ctx = copy.copy(self)
        ctx._generator = None
        return ctx

    def subseed(self, purpose: str) -> int:
        """A seed for one purpose in this step."""
        return subseed(self._seed, purpose, self.step)

    def draw(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) on the training device; they depend on (seed, step) and the order of calls only."""
        if self._generator is None:
            self._generator = generator(self._seed, "step", self.step)
        return send(torch.rand(shape, generator=self._generator), self.device)


class Teacher:
    """A frozen network. Not an nn.Module, so it cannot be trained, moved or saved along with a method."""

    def __init__(self, network: nn.Module) -> None:
        frozen: Any = network.eval().requires_grad_(False)
        self._network = frozen
        self.dims: dict[str, int] = frozen.dims
        self.name: str = frozen.name
        self.kept: Callable[[Tensor, Tensor], Tensor] | None = None
        """(index, replay) -> logits (B, C) of stored views, which the network need not see; see `teacher.cache`."""

    @torch.no_grad()
    def __call__(self, view: View | Tensor, features: tuple[str, ...] = ()) -> Output:
        if self.kept is not None and isinstance(view, View) and view.replay is not None:
            if features:
                raise ConfigError(
                    f"teacher.cache.mode: only logits are kept, and {features[0]} is asked; set it to off"
                )
            return Output(self.kept(view.index, view.replay), {})
        return self._network(view, features)  # type: ignore[no-any-return]

    @property
    def class_embeddings(self) -> Tensor | None:
        """(C, D) float32 of length 1, on the teacher's device: the classes in the space of a CLIP; None of others."""
        found: Tensor | None = getattr(self._network, "class_embeddings", None)
        return found

    @property
    def has_dropout(self) -> bool:
        return bool(self._dropouts())

    @torch.no_grad()
    def mc_samples(self, view: View | Tensor, passes: int, seed: int) -> Tensor:
        """Logits (passes, B, C) with dropout active, drawn from `seed`; all else stays as in evaluation."""
        dropouts = self._dropouts()
        for module in dropouts:
            module.training = True  # the flag of this module alone: batch normalisation inside it keeps its own
        try:
            # unlike `Context.draw`, dropout draws where the network is: other devices, other numbers
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                return torch.stack([self._network(view).logits for _ in range(passes)])
        finally:
            for module in dropouts:
                module.training = False

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(iter(self._network.parameters())).device
        return device

    def _dropouts(self) -> list[nn.Module]:
        """Modules that drop something: torch's, and those that do so in their forward pass (timm's `drop_rate`)."""
        return [m for m in self._network.modules() if _drops(m)]


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    rate = getattr(module, "drop_rate", 0)
    return isinstance(rate, float | int) and rate > 0


@dataclass(frozen=True)
class Setup:
    """What a method is built from, beside its configuration."""

    num_classes: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_target: Tensor
    """(N,) int64, -1 where the label is hidden from the run."""
    teacher: Teacher | None = None
    class_names: tuple[str, ...] = ()
    """In words, in the order of the labels; empty where the dataset has none."""

    def network(self, model: ModelConfig, seed: int, role: str = "") -> Network:
        """A new network for this dataset."""
        import timm

        if model.name == "open_clip" and "vision_cfg" not in model.args:
            from kdrun import clip

            model = clip.student(model)
        mean, std = model.mean, model.std
        if model.pretrained and (mean is None or std is None):  # the weights expect their own
            published = timm.get_pretrained_cfg(model.name)
            if published is not None:
                mean, std = mean or list(published.mean), std or list(published.std)
        return build_network(
            model,
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            mean=for_channels(mean or self.mean, self.in_chans),
            std=for_channels(std or self.std, self.in_chans),
            seed=seed,
            role=role,
        )


def for_channels(values: Sequence[float], in_chans: int) -> Sequence[float]:
    """Statistics of color images for gray ones, and one number for all channels."""
    if len(values) == in_chans:
        return values
    if in_chans == 1 or len(values) == 1:
        return [sum(values) / len(values)] * in_chans
    raise ConfigError(f"mean, std: {len(values)} numbers for images of {in_chans} channels")


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


def teacher_runs(config: RunConfig, spec: TeacherConfig, role: str = "teacher") -> dict[str, RunConfig]:
    """The runs that make the teacher, by role: `teacher`, and `teacher_1` ... of its members."""
    if spec.source == "train":
        return {role: teacher_run(config, spec)}
    if spec.source == "clip":
        return {role: clip_run(config, spec)}
    own = {role: adapter_run(config, spec)} if spec.source == "tip_adapter" else {}
    members = enumerate(spec.members, start=1)
    return own | {r: run for i, member in members for r, run in teacher_runs(config, member, f"{role}_{i}").items()}


def teacher_run(config: RunConfig, spec: TeacherConfig) -> RunConfig:
    """The ordinary supervised run that makes the teacher of `config`: same data and recipe, own network and seed."""
    loss = lookup("loss", spec.loss, "teacher.loss")
    own = loss.Config(name=spec.loss)
    if loss.works_against(own) != "target":
        raise ConfigError(f"teacher.loss: {spec.loss} works against a teacher; choose a loss against labels, e.g. ce")
    schedule = spec.schedule or config.schedule
    if spec.steps is not None or spec.epochs is not None:
        schedule = schedule.replace(steps=spec.steps, epochs=spec.epochs)
    dataset = config.dataset
    if dataset.split_file is None:  # else it sees what the file names as labeled
        drawn = spec.num_labels is not None
        dataset = dataset.replace(num_labels=spec.num_labels, split_seed=config.split_seed if drawn else None)
    return _supervised_run(config, spec.model, own, spec.mix, schedule=schedule, dataset=dataset, seed=spec.seed)


def head_warmup_runs(config: RunConfig) -> dict[str, RunConfig]:
    """The runs that the heads of students come from, by role: `head_warmup`, or `head_warmup_<k>` of several students.

    The same data, views without mixing, batch size and weight decay as in `config`; cross entropy, no decay. They know
    nothing of the teacher, so all runs that differ in method, loss, teacher or length share them.
    """
    out = {}
    for k, model in enumerate(config.students):
        warmup = model.head_warmup
        if warmup is None:
            continue
        given = config.schedule
        schedule = ScheduleConfig(
            epochs=warmup.epochs, lr=warmup.lr, optimizer=warmup.optimizer,
            batch_size=given.batch_size, weight_decay=given.weight_decay, weight_decay_on=given.weight_decay_on,
            channels_last=given.channels_last, precision=given.precision, compile=given.compile, fused=given.fused,
        )  # fmt: skip
        head = model.replace(trainable="head", head_warmup=None, lr_scale=1.0)
        ce = lookup("loss", "ce", "loss").Config(name="ce")
        role = "head_warmup" if len(config.students) == 1 else f"head_warmup_{k + 1}"
        out[role] = _supervised_run(config, head, ce, MixConfig(), schedule=schedule)
    if len({run_key(run) for run in out.values()}) < len(out):
        raise ConfigError(
            "students: two of them have the same head_warmup run, and would start as one network; give one of them "
            "another network or another head_warmup"
        )
    return out


def _supervised_run(
    config: RunConfig, model: ModelConfig | None, loss: TermConfig, mix: MixConfig, **changes: Any
) -> RunConfig:
    """An ordinary run on labels that another run needs."""
    run = config.replace(
        method=lookup("method", "supervised", "method").Config(name="supervised"),
        losses={loss.name: loss},
        ramps={},
        students=[model],
        teacher=TeacherConfig(),
        views=config.views.replace(mix=mix),
        **changes,
    )
    plugged = plugin_hashes(plugged_classes(run))
    return effective(run.replace(plugins=config.plugins if plugged else []))


def clip_run(config: RunConfig, spec: TeacherConfig) -> RunConfig:
    """The run of method=contrastive that trains the CLIP of `config`, on the upstream part of its dataset.

    Its recipe is its own (ours), so that students of any schedule share it.
    """
    contrastive, ce = lookup("method", "contrastive", "teacher"), lookup("loss", "ce", "teacher")
    length: dict[str, Any] = {"epochs": spec.epochs} if spec.epochs is not None else {"steps": spec.steps or 600}
    dataset = config.dataset
    run = config.replace(
        method=contrastive.Config(name="contrastive"),
        losses={"ce": ce.Config(name="ce")},
        ramps={},
        students=[spec.model],
        teacher=TeacherConfig(),
        schedule=ScheduleConfig(
            **length, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.1, weight_decay_on="kernels",
            decay=lookup("decay", "cosine", "teacher").Config(name="cosine"), warmup_steps=50, clip_norm=1.0,
        ),
        dataset=dataset.replace(
            num_labels=spec.num_labels,
            split_seed=None if spec.num_labels is None else config.split_seed,
            part="upstream" if dataset.upstream else "downstream",
        ),
        views=config.views.replace(mix=MixConfig()),
        seed=spec.seed,
    )  # fmt: skip
    own = plugin_hashes(plugged_classes(run))
    return effective(run.replace(plugins=config.plugins if own else []))


def adapter_run(config: RunConfig, spec: TeacherConfig) -> RunConfig:
    """The run of method=tip_adapter that makes the cache of `config`, on its labeled images and weak views.

    Its recipe is that of Tip-Adapter-F (Zhang et al. 2022, arXiv 2111.03930), which students of any schedule share.
    """
    adapter, ce = lookup("method", "tip_adapter", "teacher"), lookup("loss", "ce", "teacher")
    dataset = config.dataset.replace(split_seed=config.split_seed)
    length: dict[str, Any] = {"steps": spec.steps} if spec.steps is not None else {"epochs": spec.epochs or 20.0}
    # A batch holds no image twice; the authors' last batch of an epoch is as small.
    schedule = spec.schedule or ScheduleConfig(
        **length, batch_size=min(256, dataset.num_labels or 256), optimizer="adamw", lr=1e-3, weight_decay=0.01,
        optimizer_args={"eps": 1e-4}, decay=lookup("decay", "cosine", "teacher").Config(name="cosine"),
    )  # fmt: skip
    run = config.replace(
        method=adapter.Config(name="tip_adapter", **dict(spec.adapter)),
        losses={"ce": ce.Config(name="ce")},
        ramps={},
        students=[],
        teacher=spec.members[0],
        schedule=schedule,
        dataset=dataset,
        views=config.views.replace(mix=MixConfig()),
        seed=spec.seed,
    )
    own = plugin_hashes(plugged_classes(run))
    return effective(run.replace(plugins=config.plugins if own else []))


def parameter_groups(method: Method) -> list[dict[str, Any]]:
    """One group for each student and kind of parameter, with the student's learning rate.

    Parameters of its loss terms (a regressor, an embedding) and its other `parts` belong to the student's group. A
    frozen parameter is left out.
    """
    schedule = method.config.schedule
    groups: list[dict[str, Any]] = []
    for (name, network), model in zip(method.students.items(), method.config.students, strict=True):
        lr = schedule.lr_for.get(model.name, schedule.lr) * model.lr_scale
        parameters = [p for m in (network, *method.parts(name)) for p in m.parameters() if p.requires_grad]
        spared = schedule.weight_decay_on == "kernels"
        bare = [p for p in parameters if spared and p.ndim <= 1]
        kernels = [p for p in parameters if not (spared and p.ndim <= 1)]
        for params, decay in ((kernels, schedule.weight_decay), (bare, 0.0)):
            if params:
                groups.append({"params": params, "lr": lr, "base_lr": lr, "weight_decay": decay, "net": name})
    claimed = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in method.parameters() if p.requires_grad and id(p) not in claimed]
    if rest:  # what a method owns beside its students
        groups.append(
            {
                "params": rest,
                "lr": schedule.lr,
                "base_lr": schedule.lr,
                "weight_decay": schedule.weight_decay,
                "net": "method",
            }
        )
    return groups
