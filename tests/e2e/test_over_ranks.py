"""One run by several processes: made and written once, evaluated as by one, stopped, killed, gone on with."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kdrun.core.joining import Facts, agree, disband, join, reach
from kdrun.core.ranks import launched
from kdrun.core.world import World, enter
from kdrun.data.views.view import View
from kdrun.runs.record import find_records
from kdrun.training.evaluator import Evaluator
from tests.conftest import FAST, ROOT, TEACHER
from tests.launches import Ranks, as_rank, environment, free_port
from tests.processes import Forked

pytestmark = pytest.mark.slow
RUN = [*FAST, "method=supervised"]


def records(outputs: Path) -> dict[str, dict[str, Any]]:
    return {record["method"]: record for _, record in find_records(outputs)}


def state(outputs: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in outputs.rglob("*") if path.is_file()}


def left(outputs: Path) -> list[str]:
    names = [path.name for path in outputs.rglob("*")]
    return [name for name in names if name.endswith(".lock") or (name.startswith(".") and name != ".cache")]


def test_a_run_and_what_it_needs_are_made_once_and_told_once(outputs):
    words = [*FAST, *TEACHER, f"execution.outputs={outputs}"]
    ranks = Ranks(2, *words)
    assert ranks.wait() == [0, 0], ranks.texts
    first, second = ranks.texts
    assert second == ""
    for line in ("needs its teacher: ", "supervised on digits: ", "distill on digits: "):
        assert first.count(line) == 1
    assert first.count("done: ") == 2
    for record in records(outputs).values():
        assert (record["status"], record["world_size"], record["backend"]) == ("done", 2, "gloo")
        assert record["batch_norm"] == "global"
    (metrics,) = outputs.glob("runs/distill/*/*/*/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [5, 10, 10, 15, 20, 20]
    assert not left(outputs)

    before = state(outputs)
    ranks = Ranks(2, *words)
    assert ranks.wait() == [0, 0], ranks.texts
    assert ranks.texts[0].startswith("done already: ")
    assert ranks.texts[1] == ""
    assert state(outputs) == before | {name: mark for name, mark in state(outputs).items() if ".cache" in name}


# ----------------------------------------------------------------------------------------------------------- refusals


def test_a_mistake_is_told_by_rank_0_alone(outputs):
    ranks = Ranks(2, *RUN, "schedule.stepz=3", f"execution.outputs={outputs}")
    assert ranks.wait(30) == [2, 2]
    assert ranks.texts[0].startswith("error: schedule.stepz")
    assert ranks.texts[0].count("\n") == 1
    assert ranks.texts[1] == ""
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=1", "error: rank 1 has another command than rank 0: "),
        ("schedule.stepz=3", "error: rank 1: schedule.stepz"),
    ],
)
def test_what_another_rank_was_asked_is_told_by_rank_0(outputs, word, line):
    ranks = Ranks(2, *RUN, f"execution.outputs={outputs}", own={1: [word]})
    assert ranks.wait(30) == [2, 2]
    assert ranks.texts[0].startswith(line)
    assert ranks.texts[0].count("\n") == 1
    assert ranks.texts[1] == ""
    assert not outputs.exists()


def test_what_keeps_rank_0_from_beginning_ends_all(outputs):
    outputs.mkdir()
    (outputs / "runs").touch()
    ranks = Ranks(2, *RUN, f"execution.outputs={outputs}")
    assert ranks.wait(30) == [2, 2], ranks.texts
    assert ranks.texts[0].startswith("error: execution.outputs: ")
    assert ranks.texts[1] == ""


# ---------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("rank", "what", "place", "codes", "message"),
    [
        (1, "raises", "a step", [1, 1], "rank 1: ValueError: broken on purpose"),
        (0, "raises", "an evaluation", [1, 1], "broken on purpose"),
        (1, "SIGKILL", "a step", [1, -9], "rank 1: its process is gone: killed, or out of memory"),
        (0, "SIGKILL", "an evaluation", [-9, 1], None),
    ],
)
def test_a_rank_that_goes_no_further_ends_all_with_its_own_error(outputs, rank, what, place, codes, message):
    ranks = Ranks(2, *RUN, f"execution.outputs={outputs}", faults={rank: (what, place)})
    assert ranks.wait(40) == codes, ranks.texts
    record = records(outputs)["supervised"]
    if message is None:  # as where one process is killed; another rank tells
        assert record["status"] == "running"
        assert ranks.texts[1].count("error: rank 0: ") == 1
        return
    assert record["status"] == "failed"
    assert record["error"]["message"] == message
    assert ranks.texts[0].count(message) == 1
    assert ranks.texts[1] == ""
    assert not left(outputs)
    (log,) = outputs.glob("runs/*/*/*/*/log.txt")
    assert ("broken on purpose" in log.read_text()) == (what == "raises")


# ----------------------------------------------------------------------------------------------------------- signals


def test_a_signal_to_one_rank_stops_all_and_any_number_goes_on(outputs):
    words = [*RUN, f"execution.outputs={outputs}"]
    ranks = Ranks(2, *words, faults={1: ("SIGTERM", "a step")})
    assert ranks.wait() == [143, 143], ranks.texts
    assert "stopped by SIGTERM after step 8 of 20; a checkpoint was written" in ranks.texts[0]
    assert ranks.texts[0].count("interrupted: ") == 1
    assert ranks.texts[1] == ""
    assert not left(outputs)

    alone = Forked(as_rank, {}, "SIGINT", "an evaluation", *words)
    assert alone.wait(60) == 130
    assert "goes on with 1 rank, with 2 before" in alone.text
    assert "resumed at step 8 of 20" in alone.text

    ranks = Ranks(2, *words, faults={0: ("SIGINT", "a step")})
    assert ranks.wait() == [130, 130], ranks.texts
    assert "resumed at step 10 of 20" in ranks.texts[0]

    ranks = Ranks(2, *words)
    assert ranks.wait() == [0, 0], ranks.texts
    assert "resumed at step 18 of 20" in ranks.texts[0]
    record = records(outputs)["supervised"]
    assert record["world_size"] == 2
    assert [line for line in record["warnings"] if line.startswith("goes on")] == [
        "goes on with 1 rank, with 2 before", "goes on with 2 ranks, with 1 before",
    ]  # fmt: skip
    assert record["seconds"]["total"] > 0


def test_what_was_stopped_ends_bitwise_as_if_it_had_not_been(tmp_path):
    base = [word for word in FAST if not word.startswith("student")]
    words = [
        *base, "student=wrn_16_1", "student.args.drop_rate=0.3", "method=fixmatch", "method.unlabeled_ratio=1", "schedule.accumulate=2", "schedule.ema_decay=0.9",
        "schedule.steps=5", "schedule.eval_every_steps=2", "execution.log_every_steps=1",
    ]  # fmt: skip
    made = []
    for name, faults in (("whole", {}), ("stopped", {1: ("SIGTERM", "an early step")})):
        place = f"execution.outputs={tmp_path / name}"
        if faults:
            ranks = Ranks(2, *words, place, faults=faults)
            assert ranks.wait() == [143, 143], ranks.texts
        ranks = Ranks(2, *words, place)
        assert ranks.wait() == [0, 0], ranks.texts
        assert ("resumed at step" in ranks.texts[0]) == bool(faults)
        (run,) = (tmp_path / name).glob("runs/fixmatch/*/*/*")
        made.append({file: (run / file).read_bytes() for file in ("student.safetensors", "metrics.jsonl")})
    assert made[0] == made[1]


# -------------------------------------------------------------------------------------------------------- evaluation


def evaluated(given: dict[str, str]) -> int:
    """0: the logits over all ranks have the bits of one process's, also where a rank has no batch."""
    os.environ.update(given)
    launch = launched()
    assert launch is not None
    torch.manual_seed(0)
    images = torch.randint(256, (90, 8, 8, 1), dtype=torch.uint8)
    splits = {
        name: (images, torch.randperm(90)[:count], torch.zeros(count, dtype=torch.int64))
        for name, count in {"many": 70, "whole": 64, "few": 5}.items()
    }
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.Flatten(), torch.nn.LazyLinear(10)
    )

    def predict(view: View) -> dict[str, torch.Tensor]:
        logits = network(view.pixels.float())
        return {"a": logits, "half": logits.to(torch.bfloat16), "right": logits > 0}

    network.eval()
    evaluator = Evaluator(splits, 16)
    alone = evaluator.logits(predict)
    store = reach(launch, 30)
    enter(
        join(
            launch, store, agree(launch, store, Facts(device="cpu"), 30, time.monotonic() + 30), torch.device("cpu"), 30
        )
    )
    together = evaluator.logits(predict)
    disband()
    enter(World())
    assert list(alone) == list(together)
    assert all(torch.equal(alone[key], together[key]) and alone[key].dtype == together[key].dtype for key in alone)
    return 0


@pytest.mark.parametrize("size", [2, 3])
def test_an_evaluation_over_ranks_has_the_bits_of_one_process(size):
    port = free_port()
    processes = [Forked(evaluated, environment(rank, size, port)) for rank in range(size)]
    assert [process.wait(60) for process in processes] == [0] * size, [process.text for process in processes]


# ---------------------------------------------------------------------------------------------------------- torchrun


def test_torchrun_starts_a_run(outputs):
    words = [*RUN, "schedule.steps=4", f"execution.outputs={outputs}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launcher, "-m", "kdrun.train", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done: ") == 1
    assert records(outputs)["supervised"]["world_size"] == 2
