"""A run that another run needs: its teacher, the head that its student starts from."""

from typing import Any

from kdrun.config.effective import effective
from kdrun.config.key import plugins_of
from kdrun.config.run import RunConfig
from kdrun.config.teacher import TeacherConfig
from kdrun.config.views import MixConfig
from kdrun.core.registry import lookup


def derived(config: RunConfig, **changes: Any) -> RunConfig:
    """`config` with other fields, and, unless they say otherwise, with cross entropy alone: no teacher, mix or ramp.

    It knows no plug-in that it does not use, so that runs with and without one share it.

    Raises:
        ConfigError: it cannot run.
    """
    plain = {
        "losses": {"ce": lookup("loss", "ce", "loss").Config(name="ce")}, "ramps": {}, "teacher": TeacherConfig(),
        "views": config.views.replace(mix=MixConfig()), "debug": config.debug.replace(repeat_batch=False),
    }  # fmt: skip
    run = config.replace(**{**plain, **changes})
    if run.schedule.optimizer == "dot" and "teacher" not in run.sides:  # then it has one momentum
        run = run.replace(schedule=run.schedule.replace(optimizer="sgd", optimizer_args={}))
    return effective(run.replace(plugins=config.plugins if plugins_of(run) else []))


def supervised(config: RunConfig, **changes: Any) -> RunConfig:
    """As `derived`: an ordinary run on labels."""
    return derived(config, method=lookup("method", "supervised", "method").Config(name="supervised"), **changes)
