"""Runs that must be finished before another one."""

from typing import Any

from kdrun.config.effective import effective
from kdrun.config.key import plugged_classes, run_key
from kdrun.config.model import ModelConfig
from kdrun.config.parts import TermConfig
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.teacher import TeacherConfig
from kdrun.config.views import MixConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup, plugin_hashes


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
    if loss.needs(own).teacher:
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
        **length, batch_size=256, repeat_labeled=False, optimizer="adamw", lr=1e-3, weight_decay=0.01,
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
