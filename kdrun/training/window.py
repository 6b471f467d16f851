"""The logged values of the steps since the last line of metrics.jsonl, and what is made of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from kdrun.core.errors import KdrunError, NonFiniteLoss
from kdrun.core.world import world
from kdrun.methods.step import Guesses, Step
from kdrun.training.finite import REMEDY

LOSS = "train/loss/"
KNOWN, RIGHT = "guesses_known", "guesses_right"  # kept step by step for the accuracy of a window, not logged


class Window:
    """Values stay on the training device until somebody looks; over several ranks they are averaged then.

    Args:
        hidden: (N,) labels of the train array, -1 where nobody knows; to judge a method's guesses by.
    """

    def __init__(self, hidden: Tensor | None = None) -> None:
        self.hidden = hidden
        self.steps: list[Tensor] = []
        """(n,) of each step, under `names`."""
        self.names: list[str] = []
        self.losses: dict[str, float] = {}
        """Their means over the steps that were looked at last, by name; none before."""
        self._averaged = 0  # of them, from the first on, are means over ranks

    def values(self, out: Step) -> Tensor:
        """What is logged of a step, (n,), under `names`."""
        losses, metrics = out.losses, {**out.metrics, **self._guess_metrics(out.guesses)}
        names = [f"{LOSS}{name}" for name in losses] + [f"train/{name}" for name in metrics]
        if self.names and names != self.names:
            raise KdrunError(f"the method's losses and metrics changed their names from {self.names} to {names}")
        self.names = names
        return torch.stack([*losses.values(), *metrics.values()]).detach()

    def _guess_metrics(self, guesses: Guesses | None) -> dict[str, Tensor]:
        """Shares of the batch: learned from, of those with a known label, and right."""
        if guesses is None:
            return {}
        out = {"mask_rate": guesses.used.float().mean()}
        if self.hidden is not None:
            truth = self.hidden[guesses.index]
            known = guesses.used & (truth >= 0)
            right = known & (truth == guesses.label)
            out |= {KNOWN: known.float().mean(), RIGHT: right.float().mean()}
        return out

    def restore(self, steps: list[Tensor], names: list[str]) -> None:
        """Of a checkpoint, for which they were looked at."""
        self.steps, self.names, self._averaged = steps, names, len(steps)

    def check(self, step: int, factor: Callable[[int], float]) -> None:
        """Raise NonFiniteLoss for the first step whose loss was NaN or infinite; one transfer for all.

        Args:
            step: how many are done.
            factor: of the learning rate, of a step.
        """
        if not self.steps:
            return
        values = self._looked_at().cpu()
        losses = {column: name.removeprefix(LOSS) for column, name in enumerate(self.names) if name.startswith(LOSS)}
        for row, told in enumerate(values):
            odd = {name: float(told[column]) for column, name in losses.items() if not told[column].isfinite()}
            if odd:
                raise NonFiniteLoss(_blamed(odd, len(losses), at := step - len(self.steps) + row, factor(at)))
        means = self._means(values).items()
        self.losses = {name.removeprefix(LOSS): mean for name, mean in means if name.startswith(LOSS)}

    def taken(self) -> dict[str, float]:
        """The means over the steps, by name; the next window begins."""
        values = self._means(self._looked_at().cpu())
        self.steps.clear()
        self._averaged = 0
        known, right = values.pop(f"train/{KNOWN}", 0.0), values.pop(f"train/{RIGHT}", 0.0)
        if known:  # a mean over steps would weigh a guess by how few there were beside it
            values["train/pseudo_label_accuracy"] = right / known
        return values

    def _means(self, values: Tensor) -> dict[str, float]:
        """Of (steps, n), by name. NaN: not measured in that step."""
        return dict(zip(self.names, values.double().nanmean(0).tolist(), strict=True))

    def _looked_at(self) -> Tensor:
        """(steps, n), means over ranks; of a metric over those ranks that have measured it."""
        here = world()
        if here.size > 1 and self._averaged < len(self.steps):
            own = torch.stack(self.steps[self._averaged :])
            is_loss = torch.tensor([name.startswith(LOSS) for name in self.names], device=own.device)
            lacks = own.isnan() & ~is_loss
            sums, measured = here.mean(torch.stack([own.masked_fill(lacks, 0), (~lacks).to(own)])).unbind()
            self.steps[self._averaged :] = (sums / measured).unbind()
            self._averaged = len(self.steps)
        return torch.stack(self.steps)


def _blamed(odd: dict[str, float], count: int, step: int, factor: float) -> str:
    """What is told of a step whose losses are not finite: one of them, or what all depend on."""
    rate = f"(learning rate factor {factor:.3g}); {REMEDY}"
    if 1 < len(odd) == count and step:
        return (
            f"step {step}: all loss terms ({', '.join(odd)}) became {next(iter(odd.values())):g} at once: after step "
            f"{step - 1} the weights were not finite {rate}, or look for a term whose gradient is not finite where its "
            "value is (a root, a norm or a logarithm at 0)"
        )
    name, value = next(iter(odd.items()))
    return f"step {step}: loss term {name!r} became {value:g} {rate}"
