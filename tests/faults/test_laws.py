"""The harness itself: kdrun is broken on purpose, once for each law, and the harness says so."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdrun.cli import plan
from kdrun.core import artifacts, files
from kdrun.core.errors import KdrunError
from kdrun.runs import done, whole
from kdrun.runs.metrics_log import MetricsLog
from kdrun.training import runner
from kdrun.training.checkpoint import Checkpoint
from tests.faults.child import Child
from tests.faults.damage import Damage, own_of
from tests.faults.errors import Error
from tests.faults.kills import Kill
from tests.faults.law import BROKEN, Case, Verdict
from tests.faults.rivals import Rivals
from tests.faults.runs import Site, Stub
from tests.faults.wrong import refused
from tests.processes import Forked

pytestmark = [pytest.mark.slow, pytest.mark.faults]
Made = Callable[[Site], Case]


def operation(site: Site, run: str, name: str, file: str) -> int:
    """The number of the last operation of this name on a file with this in its path."""
    return max(n for n, what in enumerate(site.whole(run).operations, 1) if what.startswith(name) and file in what)


def no_sums_of_runs() -> None:
    whole.flaws = lambda *_, **__: {}


def no_sums_of_artifacts() -> None:
    artifacts.Artifact._compare = lambda *_: None  # type: ignore[method-assign]


def nothing_is_swept() -> None:
    runner.sweep_run = done.sweep_run = lambda *_: None
    files._dead = lambda *_: False


def no_state_is_read() -> None:
    def load(self: Checkpoint, restore: object) -> None:
        raise KdrunError(f"{self.last}: damaged")

    Checkpoint.load = load  # type: ignore[method-assign, assignment]


def nothing_is_done() -> None:
    runner.done_record = lambda *_, **__: (None, {})  # type: ignore[assignment]


def momentum_is_lost() -> None:
    torch.optim.Optimizer.load_state_dict = lambda *_: None  # type: ignore[method-assign]


def a_mistake() -> None:
    runner._fit = lambda *_: print("Traceback (most recent call last):")  # type: ignore[assignment]


def lines_are_lost() -> None:
    plain = MetricsLog.write

    def write(*args: object) -> None:
        with contextlib.suppress(OSError):
            plain(*args)  # type: ignore[arg-type]

    MetricsLog.write = write  # type: ignore[method-assign]


def advice_is_of_no_use() -> None:
    def require_whole(directory: Path, *_: object) -> None:
        raise KdrunError(f"{directory}: damaged; delete {directory}/log.txt, the same command trains this run anew")

    plan.require_whole = done.require_whole = require_whole


def weights(site: Site, run: str = "distill") -> str:
    return f"{own_of(site, run)}/student.safetensors"


def logits(site: Site) -> str:
    (name,) = [name for name in site.whole("distill").left if name.endswith("/logits.npy")]
    return name


LAWS: dict[str, tuple[Stub, Made, str]] = {
    "a flip in weights is read over": (
        no_sums_of_runs, lambda site: Damage("distill", "finished", weights(site), "flipped", 0.7, "again"), "silent",
    ),
    "a flip in an artifact is trained on": (
        no_sums_of_artifacts, lambda site: Damage("distill", "finished", logits(site), "flipped", 0.7, "student"), "silent",
    ),
    "a flip in weights is exported": (
        no_sums_of_runs, lambda site: Damage("distill", "finished", weights(site), "zeroed", 0.3, "predict"), "silent",
    ),
    "what is advised does not help": (
        advice_is_of_no_use, lambda site: Damage("supervised", "finished", weights(site, "supervised"), "flipped", 0.7, "again"),
        "stuck",
    ),
    "temporary files stay": (
        nothing_is_swept, lambda site: Kill("supervised", operation(site, "supervised", "fsync", ".config.yaml"), "before", None),
        "litter",
    ),
    "a killed run cannot go on": (
        no_state_is_read, lambda site: Kill("supervised", operation(site, "supervised", "replace", "last.pt"), "after", None),
        "lost",
    ),
    "a killed run goes on as another one": (
        momentum_is_lost, lambda site: Kill("supervised", operation(site, "supervised", "replace", "last.pt") - 30, "after", None),
        "silent",
    ),
    "two make one run": (nothing_is_done, lambda site: Rivals("supervised", (), 0), "twice"),
    "a traceback": (a_mistake, lambda site: Kill("supervised", 10**6, "before", None), "traceback"),
    "a full disk is passed over": (
        lines_are_lost, lambda site: Error("supervised", "empty", "full for a moment", operation(site, "supervised", "write", "metrics.jsonl")),
        "silent",
    ),
}  # fmt: skip


def _break(folder: Path, told: Path) -> int:
    site, found = Site(folder), {}
    for name, (stub, made, _) in LAWS.items():
        case = made(site)
        place = site.place("case")
        site.stub = stub
        found[name] = case.verdict(site, place).word
        site.stub = None
    commands: dict[str, Callable[[], Verdict]] = {
        "blamed": lambda: refused(site, site.place("case"), ["train", "seed=x"], "student"),
        "silent": lambda: refused(site, site.place("case"), ["status", "--help"], "seed"),
        "refused": lambda: refused(site, site.place("case"), ["train", "seed=x"], "seed"),
    }
    found |= {f"inputs: {name}": command().word for name, command in commands.items()}
    site.stub = _litter
    found["inputs: written"] = refused(site, site.place("case"), ["train", "seed=x"], "seed").word
    ends: dict[str, Callable[[], int]] = {"hang": _sleep, "crash": _abort, "mute": lambda: 1, "traceback": _raise}
    for name, function in ends.items():
        found[f"child: {name}"] = str(Child(site.place("case"), function).ended(2).flaw)
    told.write_text(json.dumps(found))
    return 0


def _litter() -> None:
    Path("outputs").mkdir()


def _sleep() -> int:
    time.sleep(100)
    return 0


def _abort() -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def _raise() -> int:
    raise ValueError


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("laws")
    process = Forked(_break, folder, folder / "told")
    assert process.wait(300) == 0, process.text
    words: dict[str, str] = json.loads((folder / "told").read_text())
    return words


def test_what_is_broken_on_purpose_is_reported(found):
    expected = {name: word for name, (_, _, word) in LAWS.items()}
    expected |= {name: name.partition(": ")[2] for name in found if ": " in name}
    assert found == expected
    assert {word for word in found.values() if word != "refused"} == set(BROKEN)
