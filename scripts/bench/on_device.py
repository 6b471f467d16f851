"""The loop beside the bare step on an accelerator: plain, captured, compiled, with cudnn's search for kernels."""

import gc
from collections.abc import Sequence
from dataclasses import replace

import torch

from kdrun.core.device import device_of
from scripts.bench.cases import CASES, CIFAR_EPOCH, TESTED, Case
from scripts.bench.harness import session
from scripts.bench.item import Given
from scripts.bench.step import measure, show

TTM = Case("kd", "resnet32x4 -> resnet8x4, 32 px, 64", ("loss=kd", "student=resnet8x4", "teacher=resnet32x4"), 10, 60,
           CIFAR_EPOCH, TESTED, images=10_000)  # fmt: skip
FIXMATCH = replace(CASES["fixmatch"], steps_on_cuda=30, images=10_000)
LARGE = replace(
    CASES["kd_224"], networks="resnet50 -> resnet18, 224 px, 256", steps_on_cuda=10, images=1024,
    overrides=(*CASES["kd_224"].overrides, "schedule.batch_size=256"),
)  # fmt: skip
REAL = (TTM, FIXMATCH, LARGE)
_TINY = ("student=resnet8", "student.args.width=4", "schedule.batch_size=8")
TINY = (
    Case("kd", "resnet8 -> resnet8, 8 px, 8", ("loss=kd", "teacher=resnet8", *_TINY), 2, 2, 50, 100, images=200,
         side=8),
    Case("fixmatch", "resnet8, 8 px, 8 + 56 pairs", ("method=fixmatch", "loss=ce", "schedule=fixmatch",
         "views=kekmodel", "schedule.eval_every_steps=null", "dataset.num_labels=100", *_TINY), 2, 2, 50, 100,
         images=200, side=8),
)  # fmt: skip
GOAL = 65
"""Steps/s of FixMatch with WRN-28-2 and 64 + 448 images."""
FIGURES = ("loop", "bare", "loop / bare step", "images", "data", "memory")
BOTH, SHORT = ("bf16", "fp32"), ("bf16",)


def cases(given: Given) -> tuple[Case, ...]:
    return TINY if given.tiny else REAL


def plain(given: Given) -> None:
    _measure(given, BOTH)


def graph(given: Given) -> None:
    _measure(given, BOTH, "schedule.graph=true")


def compiled(given: Given) -> None:
    _measure(given, SHORT, "schedule.compile=true", times=1)


def tuned(given: Given) -> None:
    """kdrun leaves cudnn's search for the fastest kernels off; the peers turn it on (PEERS_KD.md 6.2)."""
    torch.backends.cudnn.benchmark = True
    _measure(given, SHORT, beside="cudnn.benchmark")


def _measure(given: Given, precisions: Sequence[str], *more: str, times: int = 2, beside: str = "") -> None:
    """Each case at each precision; those that fail are told, and the next one is tried."""
    session.bench = "step"
    kind = " ".join((*more, beside)).strip() or "plain"
    precisions = SHORT if given.tiny else precisions
    planned = [(case, precision) for precision in precisions for case in cases(given)]
    given.plan([f"{case.name}, {precision}, {kind}" for case, precision in planned])
    for case, precision in planned:
        name = f"{case.name}, {precision}, {kind}"
        session.figures.clear()
        with given.tried(name):
            found = measure(
                case, precision, *more, device=device_of(given.device, "device"), times=times, memory=False, brief=True
            )
            show(found)
            figures = {
                figure["kind"]: (figure["values"], figure["unit"])
                for figure in session.figures if figure["kind"] in FIGURES
            }  # fmt: skip
            figures["rate"] = ([1 / one for one in found.loop], "steps/s")
            steps = case.steps if given.tiny else case.steps_on_cuda
            goal = {"goal": f"{GOAL} steps/s"} if case is FIXMATCH else {}
            given.tell(name, figures, networks=case.networks, steps=steps, times=times, seed=0, **goal)
        if not given.tiny:
            gc.collect()
            torch.cuda.empty_cache()
