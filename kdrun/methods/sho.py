"""One head on labels and on a teacher, with unlabeled images: the rival of DHO (Kang et al. 2025, arXiv 2505.07675).

L = terms of `loss` against the labels, on labeled images, + terms against the teacher, on labeled images and on
unlabeled ones, two means that are summed. A term that reads labels beside the teacher (DKD) gets the teacher's most
probable class for an unlabeled image (ours: the paper is silent).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor

from kdrun.config.needs import Needs
from kdrun.config.run import RunConfig
from kdrun.core.errors import KdrunError
from kdrun.core.registry import register
from kdrun.data.views.view import Batch, together
from kdrun.losses.set import LossSet
from kdrun.losses.term import Pair
from kdrun.methods.gradients import SURGERIES, backward_with_surgery, conflict
from kdrun.methods.method import Method
from kdrun.methods.names import NamesConfig, names_contradictions, start_from_names
from kdrun.methods.step import Context, Setup, Step, chosen
from kdrun.models.output import Output

FEATURE = "prelogits"


class SHOConfig(NamesConfig):
    unlabeled_ratio: int = Field(1, ge=0)
    """Unlabeled images for each labeled one in a batch; 0: none, and no term on them."""
    concatenate: bool = True
    """One forward pass of labeled and unlabeled images together; false: two, each with its own batch statistics."""
    pcgrad: bool = False
    """Take out of each gradient, that of the labels and that of the teacher, what goes against the other one."""

    @property
    def surgery(self) -> str | None:
        """How the gradients of labels and teacher are put together, a key of its own; None: they are added up."""
        return "pcgrad" if self.pcgrad else None


S = TypeVar("S", bound=SHOConfig)


@register("method", "sho")
class SHO(Method[S]):
    """One head on labels and on a teacher, with unlabeled images: the rival of DHO."""

    Config = SHOConfig
    equation = (
        "terms of loss against the labels + terms against the teacher, a mean over labeled and one over unlabeled "
        "images"
    )
    source = "Kang et al. 2025, arXiv 2505.07675; pcgrad: Yu et al. 2020, arXiv 2001.06782"

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if self.spec.language_aware_init != "none":
            start_from_names([self.networks()["student"].net.get_classifier()], config, setup)

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        spec = cls.spec_of(config)
        streams = ("labeled", "unlabeled") if spec.unlabeled_ratio else ("labeled",)
        return Needs(
            streams=dict.fromkeys(streams, ("weak",)), sides=("target", "teacher"),
            over_ranks="mean" if spec.surgery is None else "gathered",
        )  # fmt: skip

    @classmethod
    def batch_sizes(cls, config: RunConfig) -> dict[str, int]:
        size = config.schedule.batch_size
        sizes = {"labeled": size, "unlabeled": size * cls.spec_of(config).unlabeled_ratio}
        return {stream: sizes[stream] for stream in cls.needs(config).streams}

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        name, spec, errors = config.method.name, cls.spec_of(config), list[str]()
        if "teacher" not in config.sides:
            errors.append(f"loss: method={name} needs a term against the teacher; add one, or choose method=supervised")
        if spec.surgery is not None and config.schedule.compile is not None:
            errors.append(
                f"method.{spec.surgery}: needs two backward passes through a network; set schedule.compile=null"
            )
        return errors + names_contradictions(config)

    @property
    def shared(self) -> str:
        """The feature that both losses go through."""
        return FEATURE

    def heads(self, out: Output, ctx: Context | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, C) for the terms against the labels, and for those against the teacher.

        Args:
            ctx: of the step, where this is one.
        """
        return out.logits, out.logits

    def heads_of_labeled(self, out: Output, ctx: Context) -> tuple[Tensor, Tensor]:
        """As `heads`, of labeled images in a step."""
        return self.heads(out, ctx)

    def step(self, batch: Batch, ctx: Context) -> Step:
        if self.teacher is None:
            raise KdrunError(f"method={self.config.method.name} was built without a teacher")
        labeled = batch["labeled"]
        views = [samples.views["weak"] for samples in (labeled, batch.get("unlabeled")) if samples is not None]
        sizes = [len(view.index) for view in views]
        joint = together(views)
        losses, student = self.losses(), self.networks()["student"]
        shared = (self.shared,) if self.shared in student.dims else ()
        wanted = tuple(dict.fromkeys((*losses.needed.features, *shared)))
        taught = self.teacher(joint, losses.needed.of_teacher).split(sizes)
        if self.spec.concatenate:
            root = student(joint, wanted)
            outputs = root.split(sizes)
        else:
            outputs = [student(view, wanted) for view in views]
            root = outputs[0]

        ce_logits, kd_logits = self.heads_of_labeled(outputs[0], ctx)
        own = Pair(replace(outputs[0], logits=ce_logits), None, labeled.target, views[0].index, ctx.progress, ctx.draw)
        known = replace(own, student=replace(outputs[0], logits=kd_logits), teacher=taught[0])
        pairs = [known]
        if len(views) > 1:
            new = replace(outputs[1], logits=self.heads(outputs[1], ctx)[1])
            target = taught[1].logits.argmax(1)
            pairs.append(replace(known, student=new, teacher=taught[1], target=target, index=views[1].index))
        of_labels, of_teacher = losses.target(own), against_teacher(losses, *pairs)
        metrics = {}
        if of_labels and self.shared in root.features and self.config.schedule.compile is None:
            metrics["gradient_conflict"] = self._conflict(of_labels, of_teacher, root, sizes[0], ctx)
        return Step({**of_labels, **of_teacher}, metrics)

    def _conflict(
        self, one: Mapping[str, Tensor], other: Mapping[str, Tensor], root: Output, labeled: int, ctx: Context
    ) -> Tensor:
        """Cosine of the two gradients at the shared features of the labeled images, at steps that are logged."""
        at, every = root.features[self.shared], self.config.execution.log_every_steps
        nothing = at.new_full((), torch.nan, dtype=torch.float32)
        if not at.requires_grad:
            return nothing
        logged = ctx.holds(lambda step: (step + 1) % every == 0)
        return chosen(logged, lambda: conflict(_sum(one), _sum(other), at, labeled), lambda: nothing)

    @property
    def averages(self) -> bool:
        return self.spec.surgery is not None and bool(self.losses().labels_of("target"))

    def backward(self, losses: Mapping[str, Tensor], scale: Callable[[Tensor], Tensor]) -> None:
        if self.spec.surgery is None or not self.averages:
            return super().backward(losses, scale)
        targets = self.losses().labels_of("target")
        one = {name: value for name, value in losses.items() if name in targets}
        other = {name: value for name, value in losses.items() if name not in one}
        parameters = [p for p in self.parameters() if p.requires_grad]
        return backward_with_surgery(scale(_sum(one)), scale(_sum(other)), parameters, SURGERIES[self.spec.surgery])


def against_teacher(losses: LossSet, known: Pair, new: Pair | None = None) -> dict[str, Tensor]:
    """The terms against the teacher, on labeled images, and on unlabeled ones where there are any."""
    out = losses.teacher(known)
    if new is not None:
        out |= {f"unlabeled_{label}": value for label, value in losses.teacher(new).items()}
    return out


def _sum(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
