"""One head on labels and on a teacher, with unlabeled images: the rival of DHO (Kang et al. 2025, arXiv 2505.07675).

L = terms of `loss` against the labels, on labeled images, + terms against the teacher, on labeled images and on
unlabeled ones, two means that are summed. A term that reads labels beside the teacher (DKD) gets the teacher's most
probable class for an unlabeled image (ours: the paper is silent).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import KdrunError
from kdrun.core.registry import lookup, register
from kdrun.data.views.view import Batch, together
from kdrun.losses.term import Pair
from kdrun.methods.gradients import backward_with_surgery, conflict
from kdrun.methods.method import Method
from kdrun.methods.step import Context, Step
from kdrun.models.output import Output

FEATURE = "prelogits"


class SHOConfig(MethodConfig):
    unlabeled_ratio: int = Field(1, gt=0)
    """Unlabeled images for each labeled one in a batch."""
    concatenate: bool = True
    """One forward pass of labeled and unlabeled images together; false: two, each with its own batch statistics."""
    pcgrad: bool = False
    """Take out of each gradient, that of the labels and that of the teacher, what goes against the other one."""


@register("method", "sho")
class SHO(Method):
    streams: ClassVar = {"labeled": ("weak",), "unlabeled": ("weak",)}
    loss_roles = ("target", "teacher")

    class Config(SHOConfig):
        pass

    @classmethod
    def batch_sizes(cls, config: RunConfig) -> dict[str, int]:
        size = config.schedule.batch_size
        return {"labeled": size, "unlabeled": size * config.method.unlabeled_ratio}  # type: ignore[attr-defined]

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        kinds = {label: lookup("loss", term.name, f"loss.{label}.name") for label, term in config.losses.items()}
        name, errors = config.method.name, []
        if "teacher" not in config.sides:
            errors.append(f"loss: method={name} needs a term against the teacher; add one, or choose method=supervised")
        errors += [
            f"loss.{label}: {config.losses[label].name} remembers single images, and method={name} shows it two "
            "batches a step; choose another term"
            for label, kind in kinds.items()
            if kind.needs_index
        ]
        if config.method.pcgrad and config.schedule.compile is not None:  # type: ignore[attr-defined]
            errors.append("method.pcgrad: needs two backward passes through a network; set schedule.compile=null")
        return errors

    @property
    def shared(self) -> str:
        """The feature that both losses go through."""
        return FEATURE

    def heads(self, out: Output) -> tuple[Tensor, Tensor]:
        """Logits (B, C) for the terms against the labels, and for those against the teacher."""
        return out.logits, out.logits

    def step(self, batch: Batch, ctx: Context) -> Step:
        if self.teacher is None:
            raise KdrunError(f"method={self.config.method.name} was built without a teacher")
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [labeled.views["weak"], unlabeled.views["weak"]]
        sizes = [len(view.index) for view in views]
        joint = together(views)
        losses, student = self.losses(), self.networks()["student"]
        wanted = tuple(dict.fromkeys([*losses.features(), *([self.shared] if self.shared in student.dims else [])]))
        taught = self.teacher(joint, losses.features("teacher")).split(sizes)
        if self.config.method.concatenate:  # type: ignore[attr-defined]
            root = student(joint, wanted)
            outputs = root.split(sizes)
        else:
            outputs = [student(view, wanted) for view in views]
            root = outputs[0]

        ce_logits, kd_logits = self.heads(outputs[0])
        own = Pair(replace(outputs[0], logits=ce_logits), None, labeled.target, views[0].index, ctx.progress, ctx.draw)
        known = replace(own, student=replace(outputs[0], logits=kd_logits), teacher=taught[0])
        new = self.keep(
            replace(
                known, student=replace(outputs[1], logits=self.heads(outputs[1])[1]), teacher=taught[1],
                target=taught[1].logits.argmax(1), index=views[1].index,
            )
        )  # fmt: skip
        against_labels = losses.target(own)
        against_teacher = losses.teacher(known)
        against_teacher |= {f"unlabeled_{label}": value for label, value in losses.teacher(new).items()}
        metrics = {}
        if against_labels and self.shared in root.features and self.config.schedule.compile is None:
            metrics["gradient_conflict"] = self._conflict(against_labels, against_teacher, root, sizes[0], ctx)
        return Step({**against_labels, **against_teacher}, metrics)

    def _conflict(
        self, one: Mapping[str, Tensor], other: Mapping[str, Tensor], root: Output, labeled: int, ctx: Context
    ) -> Tensor:
        """Cosine of the two gradients at the shared features of the labeled images, at steps that are logged."""
        at = root.features[self.shared]
        if not at.requires_grad or (ctx.step + 1) % self.config.execution.log_every_steps:
            return at.new_full((), torch.nan, dtype=torch.float32)
        return conflict(_sum(one), _sum(other), at, labeled)

    def backward(self, losses: Mapping[str, Tensor], scale: Callable[[Tensor], Tensor]) -> None:
        method: Any = self.config.method
        targets = self.losses().labels_of("target")
        one = {name: value for name, value in losses.items() if name in targets}
        if not method.pcgrad or not one:
            return super().backward(losses, scale)
        other = {name: value for name, value in losses.items() if name not in one}
        parameters = [p for p in self.parameters() if p.requires_grad]
        return backward_with_surgery(scale(_sum(one)), scale(_sum(other)), parameters)


def _sum(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
