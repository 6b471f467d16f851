"""A cell of a table with what time is left: through `kdrun sweep`, as many runs side by side as a device gains by.

On CIFAR-100 a pair of TTM's table: a teacher, then students by CE, KD, TTM and WTTM. On CIFAR-10 FixMatch and
KD-FixMatch with 250 labels. Lengths follow the speed that the items before found, so this is not the papers' schedule,
and accuracies are none of theirs. On random images it is the same, and no result.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from kdrun.cli import sweep
from kdrun.core.files import npz_arrays
from kdrun.runs.record import find_records
from scripts.bench.harness import write_random_images
from scripts.bench.item import Given, Over
from scripts.bench.mosaics import unpack

ROWS = ("ce", "kd", "ttm", "wttm")
SLOW = 2.0
"""Times that an image of the teacher's training costs one of its student's: three passes through it instead of one."""
START, END = 25.0, 15.0
"""Seconds that imports, the plan and the first batches take; and that stopping with checkpoints may."""
SHARES = {"teacher": 0.3, "students": 0.55}
"""Of the time between; the rest is evaluation, and for guesses that were too high."""
GUESS = {1: 5000.0, 8: 20_000.0}
"""Images a second of so many runs, where no item before has measured them."""
FIXMATCH = ("fixmatch", "kd_fixmatch")
PUBLISHED = {"cifar-100-python": ("cifar100", 100, 50_000), "cifar-10-batches-py": ("cifar10", 10, 50_000)}


def cell(given: Given) -> None:
    words, classes, images, result = dataset(given)
    rates = measured(given) or GUESS
    at_once = max(rates, key=lambda count: rates[count])
    left = max(1.0, given.left - START - END)
    plan = fixmatch if classes == 10 else ttm
    more, runs, told = plan(given, at_once, images, rates, left)
    words = [
        *more, *words, "tracker=none", f"execution.outputs={given.folder}/outputs", "execution.progress=false",
        f"execution.device={given.device}", f"engine.runs_per_device={at_once}", "engine.retries=0",
        *(["schedule.graph=true"] if captured(given) else []),
    ]  # fmt: skip
    print("kdrun sweep", *words, flush=True)
    given.note(f"kdrun sweep {' '.join(word for word in words if '=/' not in word)}")
    given.note(result)
    given.begin("sweep")
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))  # it stops with checkpoints
    signal.setitimer(signal.ITIMER_REAL, max(1.0, given.left - (0 if given.tiny else END)))
    code = sweep.main(words)
    signal.setitimer(signal.ITIMER_REAL, 0)
    found = results(given, told)
    given.note(f"{found} of {runs} runs are done" + (f"; the sweep ended with exit code {code}" if code else ""))
    if found and code == 128 + signal.SIGUSR1:
        raise Over
    if code:
        raise RuntimeError(f"kdrun sweep ended with exit code {code}")


def dataset(given: Given) -> tuple[list[str], int, int, str]:
    """Overrides; how many classes and training images there are; what to say of accuracies."""
    if not given.data:
        count, side = (200, 8) if given.tiny else (50_000, 32)
        words = write_random_images(Path(given.folder) / "random.npz", count, side)
        return words, 100, count, "random images: accuracies are no result"
    folder = Path(given.data)
    for name, (kind, classes, count) in PUBLISHED.items():
        if (folder / name).is_dir():
            words = [f"dataset={kind}", f"dataset.root={folder}", "dataset.verify_md5=false", "dataset.download=false"]
            return words, classes, count, f"{kind}, not the papers' schedule"
    path = Path(given.folder) / "images.npz"
    parts = sorted({mosaic.parent for mosaic in folder.rglob("*.webp")})
    said = unpack(parts or [folder], path)
    labels = npz_arrays(path, ("train_labels",))["train_labels"]
    classes = int(labels.max()) + 1
    whole = "; ".join(said) or f"all of its {len(labels):,} training images"
    return ["dataset=npz", f"dataset.path={path}"], classes, len(labels), (
        f"mosaics of {classes} classes, {whole}; not the papers' schedule"
    )  # fmt: skip


def measured(given: Given) -> dict[int, float]:
    """Images a second by the number of runs side by side, without MPS."""
    return {
        int(figure["told"]["seeds"]): figure["figures"]["images"]["median"]
        for figure in given.before if figure["item"] == "side"
    }  # fmt: skip


def captured(given: Given) -> bool:
    """Whether a captured step was found to be faster than the plain one, of KD in bf16."""
    plain, graph = (
        [figure["figures"]["rate"]["median"] for figure in given.before if figure["what"] == f"kd, bf16, {kind}"]
        for kind in ("plain", "schedule.graph=true")
    )
    return not given.tiny and max(graph, default=0.0) > max(plain, default=0.0)


Plan = tuple[list[str], int, dict[str, object]]


def ttm(given: Given, at_once: int, images: int, rates: dict[int, float], left: float) -> Plan:
    """resnet32x4 -> resnet8x4; words, runs, and what stands beside the figures."""
    seeds = 1 if given.tiny else max(1, at_once // len(ROWS))
    students = epochs(left * SHARES["students"] * rates[at_once], len(ROWS) * seeds * images)
    teacher = epochs(left * SHARES["teacher"] * rates[min(rates)] / SLOW, images)
    words = ["experiment=ttm/resnet32x4_resnet8x4", f"loss={','.join(ROWS)}",
             f"seed={','.join(map(str, range(seeds)))}", "schedule=demo", "schedule.eval_every_steps=null"]  # fmt: skip
    if given.tiny:
        small = ["student=resnet8", "student.args.width=4", "teacher=resnet14", "teacher.model.args.width=4"]
        words += [*small, "schedule.steps=3", "schedule.batch_size=8"]
        return words, len(ROWS) * seeds + 1, {"steps": 3, "precision": "fp32"}
    words += ["schedule.steps=null", f"schedule.epochs={students}", f"teacher.epochs={teacher}",
              "schedule.precision=bf16"]  # fmt: skip
    told = {"epochs": students, "teacher's": teacher, "precision": "bf16", "seeds": seeds, "at once": at_once}
    return words, len(ROWS) * seeds + 1, told


def fixmatch(given: Given, at_once: int, images: int, rates: dict[int, float], left: float) -> Plan:
    """WRN-28-2, 250 labels, 64 + 448 images; FixMatch is the first of KD-FixMatch's two stages."""
    pace = [figure for figure in given.before if figure["what"].startswith("fixmatch, bf16")]
    rate = max([figure["figures"]["rate"]["median"] for figure in pace], default=20.0)
    steps = 5 if given.tiny else max(50, int(left * 0.4 * rate))  # one stage after the other
    words = ["experiment=fixmatch/cifar10_250", f"method={','.join(FIXMATCH)}", "seed=0", f"schedule.steps={steps}",
             "schedule.eval_every_steps=null", "schedule.precision=bf16"]  # fmt: skip
    if given.tiny:
        words += ["student=resnet8", "student.args.width=4", "schedule.batch_size=4", "schedule.precision=fp32"]
    return words, 2, {"steps": steps, "precision": "bf16", "seeds": 1}


def epochs(affordable: float, one: float) -> int:
    """Whole ones, of a number of images that is affordable; at least one."""
    return max(1, int(affordable / one))


def results(given: Given, told: dict[str, object]) -> int:
    """Tell accuracies of what is done, row by row; how many runs that is."""
    rows: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for _, record in find_records(Path(given.folder) / "outputs"):
        if record["status"] != "done":
            continue
        row = row_of(record)
        headline = record["headline"]
        rows.setdefault(row, []).append(100 * record["metrics"][f"test/{headline}/top1"])
        seconds.setdefault(row, []).append(sum(record["seconds"].values()))
    for row, values in rows.items():
        given.tell(row, {"test/top1": (values, "%"), "run": (seconds[row], "s")}, **told)
    return sum(map(len, rows.values()))


def row_of(record: dict[str, Any]) -> str:
    """`distill: kd, resnet8x4`."""
    terms = [name for name in record["config"].get("loss", {}) if name != "ce"] or ["ce"]
    return f"{record['method']}: {' + '.join(terms)}, {record['nets'][record['headline']]['model']}"
