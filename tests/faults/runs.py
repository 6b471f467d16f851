"""The runs that are broken, how they are started, and what they leave."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdrun.cli.command import main
from kdrun.core import lock
from tests.conftest import FAST
from tests.faults import warm
from tests.faults.child import Child, Ended
from tests.faults.operations import Operations
from tests.unit.test_published import write_tree

STEPS = [
    "schedule.steps=4", "schedule.eval_every_steps=2", "schedule.batch_size=16", "execution.log_every_steps=1",
    "execution.checkpoint_every_steps=1",
]  # fmt: skip
BASE = [*(word for word in FAST if not word.startswith(("schedule.", "execution.log"))), *STEPS]
TEACHER = ["teacher=resnet8", "teacher.model.args.width=8", "teacher.steps=4"]
PEERS = [
    "students=[{name: resnet8, args: {width: 4}}, {name: resnet14, args: {width: 4}}]", "teacher=wrn_16_1",
    "teacher.model.args.drop_rate=0.3", "teacher.steps=4", "method/uncertainty=mc_dropout",
    "method.uncertainty.passes=2", "+ramps.beta={key: loss.kd.weight, kind: adaptive, end: 0}",
    "+ramps.gamma={key: method.peer_weight, start: 0}",
]  # fmt: skip
PACKED = [
    "views=imagenet", "views.size=12", "dataset=imagefolder", "dataset.path={data}", "dataset.num_labels=4",
    "dataset.val_fraction=0.34", "dataset.pack.size=16", "schedule.batch_size=4",
]  # fmt: skip
RUNS = {
    "supervised": [*BASE, "method=supervised", "loss=ce"],
    "distill": [*BASE, *TEACHER, "teacher.cache.mode=views", "teacher.cache.num_views=2"],
    "kd_fixmatch": [
        *BASE, "method=kd_fixmatch", "loss=ce", "method.unlabeled_ratio=2", "method.threshold=0.2",
        "method.select_threshold=0.1", "method.selector=kmeans",
    ],
    "peer_distill": [*BASE, "method=peer_distill", *PEERS],
    "dho": [*BASE, *TEACHER, "method=dho", "method.kd_head=mlp", "schedule.ema_decay=0.8", "schedule.clip_norm=1"],
    "packed": [*BASE, "method=supervised", "loss=ce", *PACKED],
}  # fmt: skip
"""Name -> words of the command line. Outputs are below the working directory."""
NOTES = "artifacts/contents/"
REMEMBERED = ".cache"
TIMES = ("seconds", "checksum")
"""In records, of what no two runs have in common."""

Stub = Callable[[], None]
"""Breaks something in a child on purpose, to see whether the harness notices."""


@dataclass(frozen=True)
class Whole:
    """What a run leaves that nothing happened to."""

    outputs: Path
    left: dict[str, str]
    operations: list[str]
    """`name path` of each operation that changed a file below the outputs."""


class Site:
    """A folder in which runs are broken.

    Args:
        stub: breaks kdrun in each child, in tests of the harness.
    """

    def __init__(self, folder: Path, stub: Stub | None = None) -> None:
        self.folder = folder
        self.stub = stub
        self._wholes: dict[str, Whole] = {}
        write_tree(folder / "data")

    def words(self, run: str) -> list[str]:
        return ["train", *(word.replace("{data}", str(self.folder / "data")) for word in RUNS[run])]

    def place(self, name: str) -> Path:
        """A new working directory."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir()
        return self.folder / name

    def started(self, place: Path, words: list[str], operations: Operations | None = None) -> Child:
        return Child(place, _command, words, operations, self.stub)

    def ended(self, place: Path, words: list[str], operations: Operations | None = None) -> Ended:
        return self.started(place, words, operations).ended()

    def whole(self, run: str) -> Whole:
        if run not in self._wholes:
            place, notes = self.place(f"whole-{run}"), self.folder / f"{run}.operations"
            known = self.folder / f"{run}.known"
            ended = Child(place, _whole, self.words(run), Operations(place / "outputs", notes), known).ended()
            if ended.code != 0:
                raise RuntimeError(f"{run} does not run: {ended.text}")
            warm.learn(known, self.words(run))
            self._wholes[run] = Whole(place / "outputs", left(place / "outputs"), notes.read_text().splitlines())
        return self._wholes[run]


def _whole(words: list[str], operations: Operations, known: Path) -> int:
    code = _command(words, operations, None)
    warm.tell(known)
    return code


def _command(words: list[str], operations: Operations | None, stub: Stub | None) -> int:
    if stub is not None:
        stub()
    lock.HEARTBEAT, lock.STALE = 0.5, 3.0  # seconds; a lock that names no process is waited for until it is stale
    if operations is not None:
        operations.install()
    return main(words)


def left(outputs: Path) -> dict[str, str]:
    """Name below the outputs -> what is in it: the hash of a file, but for times; "" of logs; "folder".

    Notes of hashes are named after times of the data, which another program may touch: here after what they hold. What
    is remembered to be faster the next time may be there or not.
    """
    names = {path: path.relative_to(outputs).as_posix() for path in sorted(outputs.rglob("*"))}
    found = {name: content(path) for path, name in names.items() if name.partition("/")[0] != REMEMBERED}
    return {f"{NOTES}{what}" if name.startswith(NOTES) else name: what for name, what in found.items()}


def content(path: Path) -> str:
    if path.is_dir():
        return "folder"
    if path.name == "log.txt":
        return ""
    data = path.read_bytes()
    if path.name == "record.json":
        with contextlib.suppress(ValueError):  # a damaged one is compared as it is
            record = json.loads(data)
            data = json.dumps({key: value for key, value in record.items() if key not in TIMES}).encode()
    return hashlib.sha256(data).hexdigest()


def difference(found: dict[str, str], expected: dict[str, str]) -> tuple[str, str] | None:
    """lost, litter or silent, and the names that it is about."""
    if gone := sorted(set(expected) - set(found)):
        return "lost", ", ".join(gone)
    if more := sorted(set(found) - set(expected)):
        return "litter", ", ".join(more)
    if other := sorted(name for name in expected if found[name] != expected[name]):
        return "silent", ", ".join(other)
    return None
