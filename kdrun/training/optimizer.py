"""The optimizer of a method: parameter groups and their learning rates."""

import inspect
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.core.errors import ConfigError, allowed
from kdrun.methods.method import Method
from kdrun.training.dot import DOT, refuse_for_dot

CAPTURABLE = (torch.optim.SGD, torch.optim.Adam)  # and AdamW: fused, they take a learning rate from the device


def parameter_groups(method: Method[Any]) -> list[dict[str, Any]]:
    """One group for each student and kind of parameter, with the student's learning rate.

    Parameters of its loss terms (a regressor, an embedding) and its other `parts` belong to the student's group. A
    frozen parameter is left out.
    """
    schedule = method.config.schedule
    groups: list[dict[str, Any]] = []
    for (name, network), model in zip(method.students.items(), method.config.students, strict=True):
        lr = schedule.lr_for.get(model.name, schedule.lr) * model.lr_scale
        modules = (network, *method.parts(name))
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        spared = {id(p) for m in modules for p in without_decay(m, schedule.weight_decay_on)}
        bare = [p for p in parameters if id(p) in spared]
        kernels = [p for p in parameters if id(p) not in spared]
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


def without_decay(module: nn.Module, on: str) -> Iterator[nn.Parameter]:
    """The parameters that `schedule.weight_decay_on` spares.

    A part's `no_weight_decay()`, timm's convention, gives names that parameters have in it, or patterns of them.
    """
    if on == "all":
        return
    yield from (parameter for parameter in module.parameters() if parameter.ndim <= 1)
    for part in module.modules() if on == "timm" else ():
        named = getattr(part, "no_weight_decay", None)
        patterns = named() if callable(named) else ()
        for name, parameter in part.named_parameters():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                yield parameter


def make_optimizer(method: Method[Any]) -> torch.optim.Optimizer:
    """The optimizer of `schedule` over all students, one group each."""
    from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers

    schedule = method.config.schedule
    groups = parameter_groups(method)
    name, known = schedule.optimizer, [str(n) for n in list_optimizers()]
    own: Any = getattr(torch.optim, name, None)
    torch_own = isinstance(own, type) and name not in ("Optimizer", "LBFGS", "SparseAdam")
    if name == "dot":
        refuse_for_dot(method)
        own, torch_own = DOT, True
    if not torch_own and name not in known:
        raise ConfigError(f"schedule.optimizer: unknown optimizer {name!r}{allowed(name, known, most=0)}")
    plain = torch_own or name == "sgd"  # timm's "sgd" is always Nesterov's
    build: Any = (own if torch_own else torch.optim.SGD) if plain else get_optimizer_class(name, bind_defaults=False)
    accepted = inspect.signature(build).parameters
    kernels = "fused" if schedule.fused or schedule.graph else "foreach"
    if schedule.graph and not (isinstance(build, type) and issubclass(build, CAPTURABLE)):
        raise ConfigError(f"schedule.graph: a step with {name} cannot be captured; choose sgd, adam or adamw")
    if schedule.fused and kernels not in accepted:
        raise ConfigError(f"schedule.fused: {name} has no fused kernel; sgd, adam, adamw and adagrad have one")
    common: dict[str, Any] = {"momentum": schedule.momentum, "nesterov": schedule.nesterov} if plain else {}
    common |= {kernels: True, **({"capturable": True} if schedule.graph else {})}  # adam asks for it, though fused
    common = {key: value for key, value in common.items() if key in accepted}
    common |= schedule.optimizer_args
    try:
        made: object
        if plain:
            made = build(groups, lr=schedule.lr, **common)
        else:
            made = create_optimizer_v2(
                groups,
                opt=name,
                lr=schedule.lr,
                weight_decay=schedule.weight_decay,
                momentum=schedule.momentum,
                **common,
            )
    except (TypeError, ValueError, RuntimeError) as error:
        given = schedule.optimizer_args
        raise ConfigError(f"schedule.optimizer_args: {name} does not take {given}: {error}") from None
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"schedule.optimizer: {name} wraps an optimizer, which resuming does not support")
    return made


def clip_groups(optimizer: torch.optim.Optimizer, clip_norm: float | None) -> dict[str, list[Tensor]]:
    """The parameters whose gradient norm is limited, by student; none without a limit."""
    by_net: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups if clip_norm is not None else []:
        by_net.setdefault(group["net"], []).extend(group["params"])
    return by_net
