"""The distillation-oriented trainer (DOT: Zhao et al., ICCV 2023): SGD with two momenta, of labels and of the teacher.

v_task <- (m - delta) v_task + g_task + w theta, v_teacher <- (m + delta) v_teacher + g_teacher, and
theta <- theta - lr (v_task + v_teacher); w is the weight decay. With delta=0 it is SGD. g_teacher is the gradient of
the terms against the teacher, g_task that of all others: those against the labels, and what the method itself adds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdrun.core.errors import ConfigError
from kdrun.core.world import world
from kdrun.methods.method import Method


class DOT(torch.optim.Optimizer):
    """`schedule.optimizer=dot`. It makes the backward pass itself, after which `grad` of a parameter is g_task alone.

    A parameter that only one of the two depends on moves as by SGD with m.

    Args:
        delta: how far the two momenta are from m, which is `momentum`.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, delta: float = 0.075
    ) -> None:
        if not 0 <= delta <= momentum or momentum + delta >= 1:
            raise ValueError(f"delta must be from 0 to {momentum:g} and below {1 - momentum:g}, got {delta}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "delta": delta})
        self._taught: dict[Tensor, Tensor] = {}
        """g_teacher by parameter."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._taught = {}
        super().zero_grad(set_to_none)

    def backward(self, taught: Sequence[Tensor], task: Sequence[Tensor]) -> None:
        """Add the gradients of () losses to those that are there. Takes two backward passes.

        Args:
            taught: against the teacher, one or more.
            task: the others.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        total = torch.stack(list(taught)).sum()
        found = torch.autograd.grad(total, parameters, retain_graph=bool(task), allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                before = self._taught.get(parameter)
                self._taught[parameter] = gradient if before is None else before + gradient
        if task:
            torch.stack(list(task)).sum().backward()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters. Over several ranks `grad` is the mean already, and g_teacher becomes it here."""
        taught = self._taught
        world().average(list(taught.values()))
        for group in self.param_groups:
            momentum, delta, decay = group["momentum"], group["delta"], group["weight_decay"]
            both, task_alone, taught_alone = (
                [p for p in group["params"] if (p.grad is not None, p in taught) == seen]
                for seen in ((True, True), (True, False), (False, True))
            )
            self._move("task", both, [p.grad for p in both], group["lr"], momentum - delta, decay)
            self._move("teacher", both, [taught[p] for p in both], group["lr"], momentum + delta)
            self._move("task", task_alone, [p.grad for p in task_alone], group["lr"], momentum, decay)
            self._move("teacher", taught_alone, [taught[p] for p in taught_alone], group["lr"], momentum, decay)

    def _move(
        self, buffer: str, parameters: list[Tensor], gradients: list[Tensor], lr: float, momentum: float,
        decay: float = 0.0,
    ) -> None:  # fmt: skip
        if not parameters:
            return
        if decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        for parameter in parameters:
            if buffer not in self.state[parameter]:
                self.state[parameter][buffer] = torch.zeros_like(parameter)
        buffers = [self.state[parameter][buffer] for parameter in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-lr)


def parted(method: Method[Any], losses: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of a step that are of terms against the teacher, and the others.

    Raises:
        ConfigError: the method gives its terms other names than theirs.
    """
    labels = _labels(method)
    names = [name for name in losses if name.rpartition("/")[2].removeprefix("unlabeled_") in labels]
    if not names:
        raise ConfigError(
            f"schedule.optimizer: dot looks for the losses of {', '.join(sorted(labels))}, and "
            f"method={method.config.method.name} has {', '.join(losses)}; choose sgd"
        )
    return [losses[name] for name in names], [loss for name, loss in losses.items() if name not in names]


def refuse_for_dot(method: Method[Any]) -> None:
    """Raises ConfigError where a run with these parts cannot have this optimizer."""
    schedule, name = method.config.schedule, method.config.method.name
    odd = {
        "nesterov": (schedule.nesterov, "false"),
        "clip_norm": (schedule.clip_norm is not None, "null"),
        "precision": (schedule.precision == "fp16", "bf16"),
        "compile": (schedule.compile is not None, "null"),
    }
    errors = [
        f"schedule.{key}: not with schedule.optimizer=dot, which has two gradients; set it to {instead}"
        for key, (given, instead) in odd.items()
        if given
    ]
    if type(method).backward is not Method.backward:
        errors.append(
            f"schedule.optimizer: dot makes the backward pass, and method={name} has one of its own; choose "
            "method=distill, or sgd"
        )
    elif not _labels(method):
        errors.append(
            "schedule.optimizer: dot needs a term against the teacher, and loss has none; add one, or choose sgd"
        )
    if errors:
        raise ConfigError(*errors)


def _labels(method: Method[Any]) -> set[str]:
    """Of the terms against the teacher, of all students."""
    return set().union(*(method.losses(k).labels_of("teacher") for k in range(len(method.loss_sets))))
