"""Copies of one command are a pool: each takes what nobody holds, and nobody waits at a lock while there is work."""

import json
import os
import re
import signal
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from kdrun.cli.sweep import main
from kdrun.runs.pace import pace_of
from kdrun.runs.record import find_records
from kdrun.training.standing import sweeps_below
from tests.conftest import FAST, TEACHER
from tests.processes import Forked

pytestmark = pytest.mark.slow
SWEEP = [*FAST, *TEACHER, "schedule.steps=60", "loss=ce,kd", "seed=0,1,2"]


def sweep(*words: str) -> int:
    return main(words)


def span(directory: Path) -> tuple[datetime, datetime]:
    """When a run was made, by its log."""
    times = re.findall(r"^(\d{4}-\S+ \S+?),(\d{3}) ", (directory / "log.txt").read_text(), re.M)
    first, last = (datetime.fromisoformat(f"{day}.{ms}") for day, ms in (times[0], times[-1]))
    return first, last


def test_two_copies_of_a_sweep_share_its_runs(outputs):
    both = [Forked(sweep, *SWEEP, f"execution.outputs={outputs}") for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    made = [set(re.findall(r"^done: (\S+)", process.text, re.M)) for process in both]
    assert all("6 of 6 runs done" in process.text for process in both)
    assert not made[0] & made[1]
    assert {str(directory) for directory, _ in find_records(outputs)} == made[0] | made[1]
    assert len(made[0] | made[1]) == 7
    one, other = ([span(Path(place)) for place in places] for places in made)
    assert any(a < d and c < b for a, b in one for c, d in other)  # they trained at the same time
    assert not list(outputs.rglob("*.lock"))


def test_two_slots_make_what_one_makes(outputs, tmp_path):
    words = [*SWEEP, "execution.threads=1"]
    alone = Forked(sweep, *words, f"execution.outputs={outputs}")
    assert alone.wait(300) == 0
    slots = Forked(sweep, *words, f"execution.outputs={tmp_path / 'slots'}", "engine.slots=2")
    assert slots.wait(300) == 0, slots.text
    ours, theirs = (
        {r["key"]: (r["metrics"], r["threads"]) for _, r in find_records(place)}
        for place in (outputs, tmp_path / "slots")
    )
    assert ours == theirs
    assert len(ours) == 7
    first = slots.text.index("teacher resnet8-digits s0")
    assert "[7/7]" in slots.text[first:]


def test_ctrl_c_stops_all_slots_and_the_same_command_goes_on(outputs):
    words = [*FAST, "loss=ce", "seed=0,1,2", "schedule.steps=1500", "schedule.eval_every_steps=500"]
    words += ["execution.threads=1", "engine.slots=2", f"execution.outputs={outputs}"]
    first = Forked(sweep, *words)

    def under_way() -> list[str]:
        """The runs that the sweep shows to others as running, and that have logged a step."""
        seen = [run for standing in sweeps_below(outputs) for run in standing.running]
        return [run.place for run in seen if (pace_of(outputs / run.place).step or 0) > 0]

    first.wait_for(lambda: len(under_way()) == 2)
    stopped = under_way()
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130, first.text
    (line,) = [line for line in first.text.splitlines() if line.startswith("interrupted: ")]
    assert line.endswith("run the same command again to go on (0 of 3 runs are done)")
    assert "Traceback" not in first.text
    assert len(stopped) == 2
    assert all((outputs / place / "checkpoint").is_dir() for place in stopped)
    assert not list(outputs.rglob("*.lock"))
    assert not (outputs / ".cache" / "sweeps").exists()
    again = Forked(sweep, *words)
    assert again.wait(300) == 0, again.text
    assert "3 of 3 runs done" in again.text
    for place in stopped:
        assert re.search(r"resumed at step [1-9]\d* of 1500", (outputs / place / "log.txt").read_text())
    assert {record["status"] for _, record in find_records(outputs)} == {"done"}


def test_two_kills_lose_nothing_and_make_nothing_twice(outputs):
    words = [*FAST, *TEACHER, "schedule.steps=400", "execution.checkpoint_every_steps=10", "loss=ce,kd", "seed=0,1"]
    words += ["schedule.eval_every_steps=100", f"execution.outputs={outputs}", "engine.slots=2"]
    first = Forked(sweep, *words)
    met: set[int] = set()

    def at_work() -> list[int]:
        """Processes of runs that have a checkpoint."""
        locks = [lock for lock in outputs.rglob("*.lock") if ".cache" not in lock.parts]
        found = []
        for lock in locks:
            with suppress(OSError, ValueError):  # it has ended just now
                if any(lock.with_suffix("").glob("checkpoint/*")):
                    found.append(int(json.loads(lock.read_text())["pid"]))
        return [pid for pid in found if pid not in met]

    def done() -> dict[str, str]:
        """What finished runs have on disk."""
        runs = [directory for directory, record in find_records(outputs) if record["status"] == "done"]
        return {str(directory): (directory / "record.json").read_text() for directory in runs}

    first.wait_for(at_work)
    met.update(at_work()[:1])
    os.kill(next(iter(met)), signal.SIGKILL)
    first.wait_for(lambda: "tried again: killed by SIGKILL" in first.text)
    first.wait_for(lambda: len(done()) >= 2 and at_work())
    first.kill()
    before = done()
    assert len(before) < 5
    again = Forked(sweep, *words)
    assert again.wait(300) == 0, again.text
    assert "4 of 4 runs done" in again.text
    after = done()
    assert len(after) == 5
    assert {place: after[place] for place in before} == before
    for place in after:
        lines = (Path(place) / "metrics.jsonl").read_text().splitlines()
        told = [(line["step"], tuple(sorted(line))) for line in map(json.loads, lines)]
        assert len(told) == len(set(told)), place
    assert not list(outputs.rglob("*.lock"))
    assert not (outputs / ".cache" / "sweeps").exists()
