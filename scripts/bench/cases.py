"""Methods and networks whose steps are measured, each with the peers' loop and the step by hand where there is one."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdrun.core.registry import lookup
from kdrun.losses.correlation import dist
from kdrun.losses.decoupled import dkd
from kdrun.losses.logits import kd, ttm, wttm
from kdrun.losses.term import Pair, TermSpec
from kdrun.models.output import Output
from scripts.bench import by_hand
from scripts.bench.peer_images import large_images
from scripts.bench.peers import Contrast, Given, Loss, Ran, dho_authors, kekmodel, mdistiller, repdistiller

if TYPE_CHECKING:
    from scripts.bench.step import CaseBench


@dataclasses.dataclass(frozen=True)
class Case:
    """One method on certain networks."""

    name: str
    networks: str
    overrides: tuple[str, ...]
    steps: int
    """Of each measured stretch on a CPU."""
    steps_on_cuda: int
    epoch: int
    """Labeled images between two evaluations, as those who train this way have them."""
    tested: int
    """Images of such an evaluation."""
    peers: Callable[[Given], Ran] | None = None
    whose: str = ""
    """The peers' loop."""
    by_hand: Callable[["CaseBench"], Callable[[], float]] | None = None
    images: int = 50_000
    side: int = 32

    @property
    def title(self) -> str:
        return f"{self.name}, {self.networks}"

    @property
    def alone(self) -> "Case":
        """Without what is measured beside it, which no other process can be sent."""
        return dataclasses.replace(self, peers=None, by_hand=None)


CIFAR, CIFAR_EPOCH, TESTED = "resnet56 -> resnet20, 32 px, 64", 50_000, 10_000
SMALL = ("student=resnet20", "teacher=resnet56")
WIDE = ("student=wrn_28_2", "schedule=fixmatch", "schedule.eval_every_steps=null", "views=kekmodel",
        "dataset.num_labels=4000")  # fmt: skip
LARGE = ("student=timm", "student.name=resnet18", "teacher=train", "teacher.model.name=resnet50", "views=imagenet",
         "schedule.batch_size=8", "schedule.lr=0.01")  # fmt: skip
TWO_STREAMS = (*SMALL, "views=dho", "views.size=32", "dataset.num_labels=4000", "schedule.optimizer=adamw",
               "schedule.lr=0.001")  # fmt: skip


def labels_only(logits: Tensor, taught: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def against_teacher(
    term: Callable[..., Tensor], weight: float, labels: float = 1.0, with_target: bool = False, **constants: float
) -> Loss:
    """The loss of `conf/loss` in plain functions: labels * CE + weight * term."""

    def loss(logits: Tensor, taught: Tensor, target: Tensor) -> Tensor:
        more = {"target": target} if with_target else {}
        return labels * F.cross_entropy(logits, target) + weight * term(logits, taught, **more, **constants).mean()

    return loss


def contrast(given: Given) -> Ran:
    """CRD in mdistiller's loop; the memory and its loss are kdrun's, which is faster than theirs."""
    cls = lookup("loss", "crd", "loss")
    labels, width = torch.from_numpy(given.labels), 64  # both networks' features
    spec = TermSpec(int(labels.max()) + 1, len(labels), {"prelogits": width}, {"prelogits": width}, labels)
    given.extra = term = cls(cls.Config(name="crd"), spec).to(given.device)

    def value(feature: Tensor, teachers: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Callable[[], None]]:
        seen, taught = (Output(feature, {"prelogits": v}) for v in (feature, teachers))
        pair = Pair(seen, taught, target, index, 0.0, lambda *shape: torch.rand(shape, device=given.device))
        return 0.8 * term(pair).mean(), torch.no_grad()(partial(term.after_step, pair))

    made: Contrast = value
    return mdistiller(given, labels_only, contrast=made)


def _small(name: str, *overrides: str, whose: str = "", **more: Any) -> Case:
    return Case(name, CIFAR, (*overrides,), 20, 300, CIFAR_EPOCH, TESTED, whose=whose, **more)


MD, RD = "mdistiller", "RepDistiller"
TERMS: dict[str, tuple[str, Callable[[Given], Ran]]] = {
    "ttm": (RD, partial(repdistiller, loss=against_teacher(ttm, 8.0, gamma=0.2))),
    "wttm": (RD, partial(repdistiller, loss=against_teacher(wttm, 4.0, gamma=0.1))),
    "dkd": (MD, partial(mdistiller, loss=against_teacher(
        dkd, 1.0, with_target=True, alpha=1.0, beta=8.0, temperature=4.0))),
    "dist": (RD, partial(repdistiller, loss=against_teacher(dist, 2.0, beta=1.0, gamma=1.0, temperature=4.0))),
    "crd": (MD, contrast),
}  # fmt: skip
KD = against_teacher(kd, 0.9, 0.1, temperature=4.0)

CASES = {case.name: case for case in (
    _small("supervised", "method=supervised", "student=resnet20", whose=RD, by_hand=by_hand.supervised,
           peers=partial(repdistiller, loss=labels_only)),
    _small("kd", "loss=kd", *SMALL, whose=MD, by_hand=by_hand.distill, peers=partial(mdistiller, loss=KD)),
    *(_small(name, f"loss={name}", *SMALL, whose=whose, peers=loop) for name, (whose, loop) in TERMS.items()),
    _small("kd_half_teacher", "loss=kd", "teacher.precision=bf16", *SMALL, whose=MD,
           peers=partial(mdistiller, loss=KD)),
    _small("mixup_distill", "method=mixup_distill", *SMALL),
    _small("uncertainty_distill", "method=uncertainty_distill", *SMALL),
    Case("fixmatch", "wrn_28_2, 32 px, 64 + 448 pairs", ("method=fixmatch", "loss=ce", *WIDE), 2, 30, 65_536, TESTED,
         kekmodel, "kekmodel", by_hand.fixmatch),
    Case("fixmatch_in_three", "wrn_28_2, 32 px, 64 + 448 pairs, three passes",
         ("method=fixmatch", "loss=ce", "method.joint_forward=false", *WIDE), 2, 30, 65_536, TESTED, kekmodel,
         "kekmodel"),
    Case("kd_fixmatch", "wrn_28_2, 32 px, 64 + 448 pairs", ("method=kd_fixmatch", "loss=ce", *WIDE), 2, 30, 65_536,
         TESTED),
    Case("peer_fixmatch", "two wrn_28_2, 32 px, 64 + 448 pairs",
         ("method=peer_fixmatch", "students=[wrn_28_2,wrn_28_2]", *WIDE[1:]), 2, 30, 65_536, TESTED),
    Case("kd_224", "resnet50 -> resnet18, 224 px, 8", ("loss=kd", *LARGE), 3, 50, 1_281_167, 50_000,
         partial(mdistiller, loss=KD, transform=large_images(224), pin=True), MD, by_hand.distill,
         images=400, side=256),
    Case("peer_distill", "resnet56 -> resnet20, wrn_16_2, 32 px, 64",
         ("method=peer_distill", "students=[resnet20,wrn_16_2]", "teacher=resnet56"), 10, 200, CIFAR_EPOCH, TESTED,
         by_hand=by_hand.students),
    Case("dho", "resnet56 -> resnet20, 32 px, 64 + 64", ("method=dho", *TWO_STREAMS), 10, 200, CIFAR_EPOCH, TESTED,
         dho_authors, "its authors", by_hand.two_heads),
    Case("sho", "resnet56 -> resnet20, 32 px, 64 + 64", ("method=sho", *TWO_STREAMS), 10, 200, CIFAR_EPOCH, TESTED),
)}  # fmt: skip
"""All that the issue asks for, by name."""
