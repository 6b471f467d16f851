"""What waits for an accelerator, in its tiny form on the CPU: whatever an item does, the others run and all is told."""

import ctypes
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from kdrun.config.compose import Composer
from kdrun.core.errors import DataError
from scripts.bench import archive, cell, checks, mosaics, mps, on_device, side
from scripts.bench.accelerator import ITEMS, Item, asked, described, main
from scripts.bench.harness import write_random_images
from scripts.bench.item import Given, lines_of

ROOT = Path(__file__).resolve().parents[2]


def strict(path):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# ------------------------------------------------------------------------------------------- items that go wrong


def well(given):
    given.plan(["first", "second"])
    given.tell("first", {"loop": ([2.0, 1.0, 4.0], "ms"), "none": ([], "s")}, precision="bf16")
    with given.tried("second"):
        raise RuntimeError("of no great harm\nmore")
    given.tell("third", {"of what is there": ([float(len(given.before))], "")})


def fine(given):
    given.tell("fine", {"before": ([float(len(given.before))], "")})


def hang(given):
    """As in a call of CUDA that does not return: no handler of a signal runs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])
    Path(given.folder, "left.txt").write_text(str(subprocess.Popen(["sleep", "100"]).pid))
    given.plan(["never", "later"])
    given.begin("never")
    ctypes.CDLL(None).sleep(100)


def slow(given):
    given.plan(["quick", "endless"])
    given.tell("quick", {"took": ([1.0], "s")})
    given.begin("endless")
    time.sleep(100)


def slow_and_nothing(given):
    time.sleep(100)


def crash(given):
    print("before the end", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def raised(given):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_an_item_that_hangs_crashes_or_fails_costs_itself_alone(tmp_path, capsys, monkeypatch):
    here, told = "tests.unit.test_accelerator:", tmp_path / "pids"
    told.mkdir()
    monkeypatch.setattr("scripts.bench.accelerator.tempfile.TemporaryDirectory", lambda **_: nullcontext(str(told)))
    items = [
        Item(name, seconds, here + name, f"{name} of all")
        for name, seconds in (
            ("well", 4), ("hang", 4), ("slow", 4), ("slow_and_nothing", 2), ("crash", 4), ("raised", 4), ("fine", 6)
        )
    ] + [Item("cudas", 1, here + "fine", "skipped", cuda="for a reason")]  # fmt: skip
    started = time.monotonic()
    assert main(["minutes=0.35", "device=cpu", f"out={tmp_path / 'out'}"], items) == 1
    assert time.monotonic() - started < 21.5
    written = strict(tmp_path / "out" / "accelerator.json")
    ran = {item["name"]: item for item in written["items"]}
    assert {name: item["state"] for name, item in ran.items()} == {
        "well": "failed", "hang": "killed", "slow": "stopped at its cap", "slow_and_nothing": "failed",
        "crash": "failed", "raised": "failed", "fine": "done", "cudas": "skipped",
    }  # fmt: skip
    assert ran["well"]["why"] == "second: RuntimeError: of no great harm"
    assert [figure["what"] for figure in ran["well"]["figures"]] == ["first", "third"]
    loop = ran["well"]["figures"][0]["figures"]
    assert loop == {"loop": {"unit": "ms", "values": [2.0, 1.0, 4.0], "min": 1.0, "median": 2.0, "max": 4.0}}
    assert ran["hang"]["why"] == "at its cap in never; it had printed: -- never"
    assert ran["hang"]["not_reached"] == ["never", "later"]
    assert ran["slow"]["not_reached"] == ["endless"]
    assert "before the end" in ran["crash"]["why"]
    assert "exit code -11" in ran["crash"]["why"]
    assert "illegal memory access" in ran["raised"]["why"]
    assert ran["cudas"]["why"] == "for a reason"
    assert ran["fine"]["figures"][0]["figures"]["before"]["values"] == [3.0]  # of well and slow
    assert not alive((told / "left.txt").read_text())
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "first: loop 2 ms (1 to 4) [precision bf16; " in table
    assert table in capsys.readouterr().out
    assert {"torch", "python", "commit", "cpu"} <= written["machine"].keys()


# ------------------------------------------------------------------------------------------------- the real items


def test_every_item_runs_in_its_tiny_form_or_says_why_not(tmp_path):
    out = tmp_path / "out"
    assert main(["minutes=1.4", "device=cpu", f"out={out}"]) == 0
    written = strict(out / "accelerator.json")
    states = {item["name"]: item["state"] for item in written["items"]}
    assert written["tiny"] is True
    assert written["not_reached"] == []
    assert states == {item.name: "skipped" if item.cuda else "done" for item in ITEMS}
    figures = {item["name"]: {one["what"]: one for one in item["figures"]} for item in written["items"]}
    assert all(item["why"] for item in written["items"] if item["state"] == "skipped")
    assert "skipped" in figures["correctness"]["test_near_the_cpu"]["figures"]
    for name, kind in (("plain", "plain"), ("graph", "schedule.graph=true")):
        expected = {f"{case}, bf16, {kind}" for case in ("kd", "fixmatch")}
        assert set(figures[name]) == expected
        for one in figures[name].values():
            assert {"loop", "bare", "loop / bare step", "images", "data", "rate"} <= one["figures"].keys()
            assert one["told"]["steps"] == 2
    assert list(figures["side"]) == ["1 run", "2 runs"]
    assert len(figures["cell"]) == 5
    assert all("test/top1" in one["figures"] for one in figures["cell"].values())
    notes = next(item["notes"] for item in written["items"] if item["name"] == "cell")
    assert "random images: accuracies are no result" in notes
    table = (out / "table.txt").read_text()
    assert all(f"\n{item.name} ({item.what}): " in table for item in ITEMS)
    assert sorted(path.name for path in out.iterdir()) == [
        "accelerator.json", "predictions.tar.gz", "printed.txt", "records.tar.gz", "table.txt",
    ]  # fmt: skip
    with tarfile.open(out / "records.tar.gz") as packed:
        assert len([name for name in packed.getnames() if name.endswith("/record.json")]) == 5
    with tarfile.open(out / "predictions.tar.gz") as packed:
        assert {Path(name).name for name in packed.getnames()} == {"test-student.npz"}


def test_what_runs_on_a_device_composes_there(tmp_path):
    """The words that only an accelerator sees, before it does."""
    data = write_random_images(tmp_path / "d.npz", 400, 8)
    given = Given("cuda", time.time() + 200, "", str(tmp_path), str(tmp_path / "told"))
    with Composer() as composer:
        for case in on_device.REAL:
            more = ("schedule.graph=true", "schedule.compile=true", "schedule.precision=bf16", "tracker=none")
            config = composer.typed([*data, *case.overrides, *more])
        assert config.schedule.batch_size == 256
        for plan in (cell.ttm, cell.fixmatch):
            words, runs, told = plan(given, 8, 50_000, {1: 9_000.0, 8: 60_000.0}, 140.0)
            words += [*data, "schedule.graph=true", "tracker=none", "engine.runs_per_device=8", "engine.retries=0"]
            assert runs >= 2
            assert told["precision"] == "bf16"
            rest = [word for word in words if not word.startswith(("engine.", "seed=", "loss=", "method="))]
            swept = [word.partition("=") for word in words if word.startswith(("loss=", "method="))]
            for name, _, values in swept:
                for value in values.split(","):
                    assert composer.typed([f"{name}={value}", *rest]).schedule.graph
            assert len(swept) == 1
    assert told["steps"] > 50


def test_a_captured_step_is_taken_for_the_cell_where_it_was_faster(tmp_path):
    def given(plain, graph):
        rates = {"kd, bf16, plain": plain, "kd, bf16, schedule.graph=true": graph}
        figures = [
            {"item": "x", "what": what, "told": {}, "figures": {"rate": {"median": rate}}}
            for what, rate in rates.items() if rate
        ]  # fmt: skip
        return Given("cuda", 0.0, "", "", "", before=figures)

    assert cell.captured(given(100.0, 130.0))
    assert not cell.captured(given(100.0, 90.0))
    assert not cell.captured(given(100.0, None))  # it failed


def test_runs_side_by_side_that_fail_say_why(tmp_path, monkeypatch):
    given = Given("cpu", time.time() + 60, "", str(tmp_path), str(tmp_path / "told"))

    def broken(*_, **__):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(side, "CaseBench", broken)
    side.side(given)
    failed = [line["failed"] for line in lines_of(tmp_path / "told") if "failed" in line]
    assert [line.partition(":")[0] for line in failed] == ["1 run", "2 runs"]
    assert all("CUDA out of memory" in line for line in failed)


def test_the_five_systems_are_checked_first_and_what_is_compiled_last():
    names = [
        f"{test}[{method}-{more}]"
        for test in ("test_stopped_and_resumed", "test_near_the_cpu")
        for method in ("sho", "dho", "distill")
        for more in ("fp32-0.01-compiled", "plain")
    ]
    first, *_, last = sorted(names, key=checks.rank)
    assert first == "test_stopped_and_resumed[distill-plain]"
    assert "compiled" in last
    assert [("compiled" in name) for name in sorted(names, key=checks.rank)] == [False] * 6 + [True] * 6


# ------------------------------------------------------------------------------------------- what stands around it


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("minute=8 out=x", "unknown option 'minute'; allowed: minutes, device"),
        ("minutes=none out=x", "minutes: none is no number of minutes above 0"),
        ("minutes=0 out=x", "minutes: 0 is no number of minutes above 0"),
        ("device=tpu out=x", "device: tpu is neither cpu nor cuda"),
        ("minutes=8", "out: missing"),
        ("out=x only=side,sides", "only: unknown 'sides'; allowed: correctness"),
        ("out=x data=/nowhere", "data: no folder /nowhere"),
    ],
)
def test_mistakes_are_one_line(words, says, capsys):
    with pytest.raises(SystemExit):
        asked(words.split())
    assert says in capsys.readouterr().err


def test_shares_are_those_of_eight_minutes():
    assert sum(item.seconds for item in ITEMS) == 480
    assert ITEMS[-1].name == "cell"


def test_mosaics_give_every_byte_back(tmp_path):
    rng = np.random.default_rng(0)
    given = {
        "train_images": rng.integers(0, 256, (47, 16, 16, 3), np.uint8), "train_labels": np.arange(47) % 7,
        "test_images": rng.integers(0, 256, (13, 16, 16, 3), np.uint8), "test_labels": np.arange(13) % 7,
        "class_names": np.array([f"k{i}" for i in range(7)]),
    }  # fmt: skip
    np.savez(tmp_path / "given.npz", **given)
    words = ["dataset=npz", f"dataset.path={tmp_path / 'given.npz'}"]
    packed = mosaics.pack(tmp_path / "packed", words, per=20, cols=5)
    assert [path.name for path in packed] == ["train_00.webp", "train_01.webp", "train_02.webp", "test_00.webp"]
    assert mosaics.unpack([tmp_path / "packed"], tmp_path / "back.npz") == []
    with np.load(tmp_path / "back.npz") as back:
        assert set(back.files) == set(given)
        for name, array in given.items():
            np.testing.assert_array_equal(back[name], array)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    packed[1].rename(elsewhere / packed[1].name)
    assert mosaics.unpack([tmp_path / "packed"], tmp_path / "part.npz") == ["train: 27 of 47 images are here"]
    with np.load(tmp_path / "part.npz") as part:
        np.testing.assert_array_equal(part["train_images"], np.delete(given["train_images"], range(20, 40), 0))
        np.testing.assert_array_equal(part["train_labels"], np.delete(given["train_labels"], range(20, 40)))
    assert mosaics.unpack([tmp_path / "packed", elsewhere], tmp_path / "both.npz") == []
    packed[0].write_bytes((tmp_path / "packed" / "train_02.webp").read_bytes())
    with pytest.raises(DataError, match=r"train_00\.webp: 10 images, 20 were packed"):
        mosaics.unpack([tmp_path / "packed", elsewhere], tmp_path / "wrong.npz")
    packed[0].write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"train_00\.webp"):
        mosaics.unpack([tmp_path / "packed", elsewhere], tmp_path / "wrong.npz")
    with pytest.raises(DataError, match=r"no meta\.json"):
        mosaics.unpack([elsewhere], tmp_path / "wrong.npz")


@pytest.mark.parametrize("classes", [10, 100])
def test_what_lies_in_a_folder_of_images_says_which_cell_it_is(tmp_path, classes):
    np.savez(
        tmp_path / "d.npz", train_images=np.zeros((200, 8, 8, 3), np.uint8), train_labels=np.arange(200) % classes,
        test_images=np.zeros((100, 8, 8, 3), np.uint8), test_labels=np.arange(100) % classes,
    )  # fmt: skip
    mosaics.pack(tmp_path / "data" / "a", ["dataset=npz", f"dataset.path={tmp_path / 'd.npz'}"], per=100, cols=10)
    given = Given("cpu", time.time() + 60, str(tmp_path / "data"), str(tmp_path), str(tmp_path / "told"))
    words, found, images, result = cell.dataset(given)
    assert words == ["dataset=npz", f"dataset.path={tmp_path / 'images.npz'}"]
    assert (found, images) == (classes, 200)
    assert result == f"mosaics of {classes} classes, all of its 200 training images; not the papers' schedule"


def test_archives_are_few_and_small_and_what_does_not_fit_is_told(tmp_path, monkeypatch):
    runs = tmp_path / "outputs" / "runs" / "distill" / "x"
    for seed in range(8):
        (runs / f"s{seed}" / "predictions").mkdir(parents=True)
        (runs / f"s{seed}" / "record.json").write_text("{}")
        (runs / f"s{seed}" / "student.safetensors").write_bytes(bytes(10))
        (runs / f"s{seed}" / "predictions" / "test-student.npz").write_bytes(bytes(400))
        (runs / f"s{seed}" / "predictions" / "test-teacher.npz").write_bytes(bytes(400))
    monkeypatch.setattr(archive, "MOST", 500)
    said = archive.pack(tmp_path / "outputs", tmp_path)
    written = sorted(path.name for path in tmp_path.glob("*.tar.gz"))
    assert written == [*(f"predictions{more}.tar.gz" for more in ("", "_3", "_4", "_5")), "records.tar.gz"]
    assert sum("no room for 1 files of predictions" in line for line in said) == 4
    names = []
    for path in tmp_path.glob("*.tar.gz"):
        with tarfile.open(path) as packed:
            names += packed.getnames()
    assert len(names) == len(set(names)) == 8 + 4
    assert archive.pack(tmp_path / "nothing", tmp_path) == []


CONTROL = """#!/bin/sh
if [ "$1" = -f ]; then
  test -z "$REFUSES" || { echo 'no such device'; exit 1; }
  touch "$CUDA_MPS_PIPE_DIRECTORY/control"
  echo $$ >"$CUDA_MPS_LOG_DIRECTORY/pid"
  while test -e "$CUDA_MPS_PIPE_DIRECTORY/control"; do sleep 0.05; done
else
  read word
  test "$word" = quit && test -z "$DEAF" && rm "$CUDA_MPS_PIPE_DIRECTORY/control"
fi
"""


@pytest.mark.parametrize("deaf", [False, True], ids=["quits", "deaf"])
def test_a_daemon_of_mps_is_started_and_stopped(tmp_path, monkeypatch, deaf):
    stand_in(tmp_path, monkeypatch, "DEAF" if deaf else "")
    monkeypatch.setattr(mps, "PATIENCE", 1.0)
    with mps.daemon(tmp_path) as (environment, why):
        assert why == ""
        assert Path(environment["CUDA_MPS_PIPE_DIRECTORY"], "control").exists()
        pid = Path(environment["CUDA_MPS_LOG_DIRECTORY"], "pid").read_text().strip()
        assert alive(pid)
    assert not alive(pid)


def test_a_daemon_of_mps_that_is_not_to_be_had_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with mps.daemon(tmp_path) as (_, why):
        assert why == "no nvidia-cuda-mps-control here"
    monkeypatch.undo()
    stand_in(tmp_path, monkeypatch, "REFUSES")
    with mps.daemon(tmp_path) as (environment, why):
        assert environment == {}
        assert why == "nvidia-cuda-mps-control did not start (exit code 1): no such device"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "control").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "theirs"))
    with mps.daemon(tmp_path) as (_, why):
        assert why.startswith("a daemon of CUDA MPS runs here already")
    assert (tmp_path / "theirs" / "control").exists()


def stand_in(folder, monkeypatch, how):
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / mps.CONTROL
    script.write_text(CONTROL)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    if how:
        monkeypatch.setenv(how, "1")


def test_wheels_are_asked_for_by_the_hashes_of_the_lock(tmp_path):
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@"\nwhile [ $# -gt 1 ]; do shift; done\ncat "$1"\n')
    pip.chmod(0o755)
    command = ["sh", "scripts/bench/wheels.sh", str(tmp_path / "w")]
    environment = {**os.environ, "PYTHON": str(pip)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "--require-hashes --only-binary=:all: --implementation cp --python-version 3.12" in done.stdout
    names = re.findall(r"^([\w-]+)==\S+ \\$", done.stdout, re.M)
    assert sorted(names) == sorted([
        "hydra-core", "omegaconf", "antlr4-python3-runtime", "pydantic", "pydantic-core", "annotated-types",
        "typing-inspection", "typing-extensions",
    ])  # fmt: skip
    assert done.stdout.count("--hash=sha256:") > 8
    done = subprocess.run([*command, "nothing-like-it"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: nothing-like-it is not in requirements.lock\n")


def test_the_device_is_described_with_every_figure():
    chip = {
        "name": "NVIDIA H200", "memory_gb": 150.8, "driver": "580.1", "cuda": "13.0", "cudnn": 91002,
        "flags": {"tf32 in convolutions": True, "tf32 in products": False},
    }  # fmt: skip
    found = {"accelerator": chip, "cpu": "x", "usable_cores": 16, "torch": "2.11.0", "python": "3.12.3", "commit": None}
    assert described(found) == [
        "NVIDIA H200, 150.8 GB, driver 580.1, CUDA 13.0, cudnn 91002; 16 cores; "
        "float32 with tf32 in convolutions: yes, tf32 in products: no",
        "torch 2.11.0, Python 3.12.3",
    ]
    assert described({"unknown": "no CUDA"}) == ["the machine could not be looked at: no CUDA"]
