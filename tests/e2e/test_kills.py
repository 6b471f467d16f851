"""A process that is killed at any operation on files: the same command ends as if nothing had been, and leaves no more."""

import os
import signal
from pathlib import Path

import pytest

from kdrun.runs.record import read_record
from tests.conftest import FAST, TEACHER
from tests.processes import Forked, command
from tests.unit.test_published import write_tree

pytestmark = pytest.mark.slow

OPERATIONS = ("replace", "unlink", "mkdir", "rmdir", "link", "rename", "fsync", "truncate")
RUN = [
    *FAST, *TEACHER, "schedule.steps=4", "schedule.eval_every_steps=2", "teacher.steps=4", "teacher.cache.mode=views",
    "teacher.cache.num_views=2", "execution.checkpoint_every_steps=1",
]  # fmt: skip
RUN = [key for key in RUN if key not in ("schedule.steps=20", "schedule.eval_every_steps=10", "teacher.steps=10")]


def counted(outputs: Path, last: int, after: bool, arguments: list[str]) -> int:
    """The command line, killed before or after its operation number `last` on files below the outputs."""
    done = 0

    def counting(plain):
        def operation(*args, **keys):
            nonlocal done
            path = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.fspath(args[0])
            own = str(path).startswith(str(outputs)) or "dir_fd" in keys
            done += own
            now = own and done == last
            if now and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return plain(*args, **keys)
            finally:
                if now:
                    os.kill(os.getpid(), signal.SIGKILL)

        return operation

    for name in OPERATIONS:
        setattr(os, name, counting(getattr(os, name)))
    code = command(*arguments, f"execution.outputs={outputs}")
    print(f"operations: {done}")
    return code


def left(outputs: Path) -> dict[str, bytes]:
    """Every file, with its content where that is a result."""
    found = {}
    for path in sorted(path for path in outputs.rglob("*") if ".lock." not in path.name):  # test_lock.py has those
        result = path.suffix in (".safetensors", ".npz", ".npy", ".jsonl", ".bin")
        found[path.relative_to(outputs).as_posix()] = path.read_bytes() if result and path.is_file() else b""
    return found


def metrics(outputs: Path) -> list[object]:
    return [read_record(path.parent)["metrics"] for path in sorted(outputs.glob("runs/*/*/*/*/record.json"))]


def packed(folder: Path) -> list[str]:
    write_tree(folder)
    views = [
        "views=imagenet",
        "views.size=12",
        "dataset=imagefolder",
        "dataset.num_labels=4",
        "dataset.val_fraction=0.34",
    ]
    keys = ["method=supervised", "loss=ce", "schedule.steps=2", "schedule.batch_size=4", "dataset.pack.size=16"]
    return [*FAST, *views, *keys, f"dataset.path={folder}", "execution.checkpoint_every_steps=1"]


@pytest.mark.parametrize("kind", ["teacher and its kept logits", "packed images"])
def test_a_kill_at_any_operation_on_files_leaves_nothing_and_changes_nothing(tmp_path, kind):
    arguments = packed(tmp_path / "data") if kind == "packed images" else RUN
    whole = Forked(counted, tmp_path / "whole", 0, False, arguments)
    assert whole.wait(100) == 0, whole.text
    count = int(whole.text.rpartition("operations: ")[2])
    assert count > 40
    points = os.environ.get("KDRUN_KILLS")
    every = max(count // int(points or 5), 1)
    for last in range(1 + count % every // 2, count + 1, every):
        outputs = tmp_path / f"killed{last}"
        process = Forked(counted, outputs, last, bool(last % 2), arguments)
        assert process.wait(100) == -signal.SIGKILL, process.text
        again = Forked(command, *arguments, f"execution.outputs={outputs}")
        assert again.wait(100) == 0, (last, process.text, again.text)
        assert left(outputs) == left(tmp_path / "whole"), (last, again.text)
        assert metrics(outputs) == metrics(tmp_path / "whole")
