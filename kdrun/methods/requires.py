"""Runs that must be finished before another one."""

from kdrun.config.derived import supervised
from kdrun.config.key import run_key
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.teacher import TeacherConfig
from kdrun.core.errors import ConfigError


def teacher_runs(config: RunConfig, spec: TeacherConfig, role: str = "teacher") -> dict[str, RunConfig]:
    """The runs that make the teacher, by role: `teacher`, and `teacher_1` ... of its members."""
    runs: dict[str, RunConfig] = spec.kind().runs(config, role)
    return runs


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
            batch_size=given.batch_size, epoch=given.epoch, last_batch=given.last_batch,
            weight_decay=given.weight_decay, weight_decay_on=given.weight_decay_on,
            channels_last=given.channels_last, precision=given.precision, compile=given.compile, fused=given.fused,
        )  # fmt: skip
        head = model.replace(trainable="head", head_warmup=None, lr_scale=1.0)
        role = "head_warmup" if len(config.students) == 1 else f"head_warmup_{k + 1}"
        out[role] = supervised(config, students=[head], schedule=schedule)
    if len({run_key(run) for run in out.values()}) < len(out):
        raise ConfigError(
            "students: two of them have the same head_warmup run, and would start as one network; give one of them "
            "another network or another head_warmup"
        )
    return out
