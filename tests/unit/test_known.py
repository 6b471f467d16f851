"""A command line whose runs are all done is told at once; what has changed since is planned as ever."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kdrun.cli import known
from kdrun.cli.train import main
from kdrun.runs.layout import run_directories
from tests.conftest import FAST

PLAIN = [*FAST, "method=supervised", "loss=ce", "schedule.steps=2", "schedule.eval_every_steps=null"]
LOADS = """
import sys
from kdrun.cli.train import main
code = main(sys.argv[1:])
sys.exit(code or 10 * ("torch" in sys.modules))
"""


@pytest.fixture
def planned(monkeypatch):
    """How often a command line was planned."""
    import kdrun.cli.train as face

    calls, plan = [], face.plan
    monkeypatch.setattr(face, "plan", lambda *given: calls.append(given) or plan(*given))
    return calls


@pytest.fixture
def own(tmp_path):
    """A dataset that the test may change, and the overrides that choose it."""
    rng, path = np.random.default_rng(0), tmp_path / "d.npz"

    def write(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
        labels = rng.permutation(60) % 3
        np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels[:9], test_labels=labels[:9])

    write(0)
    return write, ["dataset=npz", f"dataset.path={path}", "dataset.num_labels=null"]


def test_done_runs_are_told_without_planning_and_without_torch(outputs, planned, capsys):
    words = [*PLAIN, "-m", "seed=0,1", f"execution.outputs={outputs}", "teacher.temperature=3"]
    assert main(words) == 0
    first = capsys.readouterr()
    assert len(planned) == 1
    before = sorted((path, path.stat().st_mtime_ns) for path in outputs.glob("runs/**/*"))
    assert main(words) == 0
    again = capsys.readouterr()
    assert len(planned) == 1
    assert again.out.splitlines()[-2:] == first.out.splitlines()[-2:]
    count, following = first.out.splitlines()[-2:]
    assert count == "2 of 2 runs done"
    assert following.startswith(f"next: kdrun table outputs={outputs}; ")
    warning = "warning: teacher.temperature=3: has no effect in what this runs"
    assert warning in first.err.splitlines()
    assert again.err.splitlines() == [warning, "2 runs, 2 done already"]
    process = subprocess.run([sys.executable, "-c", LOADS, *words], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, again.out)
    assert sorted((path, path.stat().st_mtime_ns) for path in outputs.glob("runs/**/*")) == before


def test_one_run_says_where_it_lies_and_how_well_it_did(outputs, planned, capsys):
    words = [*PLAIN, f"execution.outputs={outputs}"]
    assert main(words) == main(words) == 0
    assert len(planned) == 1
    (directory,) = run_directories(outputs)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"done already: {directory} (val/student/top1 0.")


def test_whatever_is_not_as_it_was_is_planned(outputs, planned, own, capsys, tmp_path, monkeypatch):
    write, data = own
    words = [*PLAIN, *data, f"execution.outputs={outputs}"]
    assert main(words) == main(words) == 0
    assert len(planned) == 1
    (directory,) = run_directories(outputs)

    (left := directory / "checkpoint").mkdir()  # by a kill
    assert main(words) == 0
    assert len(planned) == 2
    assert not left.exists()

    weights = directory / "student.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(words) != 0
    assert "student.safetensors" in capsys.readouterr().err
    weights.write_bytes(content)
    assert main(words) == 0
    assert len(planned) == 3

    (kept,) = (outputs / ".cache" / "commands").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert main(words) == 0
    assert len(planned) == 4

    monkeypatch.setattr(known, "digest_of", lambda asked: f"other code {asked}")
    assert main(words) == 0
    assert len(planned) == 5
    monkeypatch.undo()

    os.utime(tmp_path / "d.npz")  # touched: read again, the same
    write(1)
    assert main(words) == 0
    assert len(run_directories(outputs)) == 2  # on other data it is another run


@pytest.mark.parametrize(
    "word",
    [
        "plugins=[x]",
        "--config-dir=elsewhere",
        "hydra.verbose=true",
        "execution.device=${oc.env:DEVICE}",
        "-cn=mine",
        "execution.keep_command=false",
    ],
)
def test_what_follows_from_more_than_conf_is_not_kept(word):
    assert known.Command.of(["method=supervised", word]) is None
    assert known.Command.of(["method=supervised", "-m"]) is not None


def test_another_outputs_folder_than_the_command_names_is_not_kept(outputs, planned):
    words = [*PLAIN, f"execution.outputs='{outputs}'"]  # quoted: Hydra reads it otherwise than it stands there
    assert main(words) == main(words) == 0
    assert len(planned) == 2
