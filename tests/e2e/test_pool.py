"""Copies of one command are a pool: each takes what nobody holds, and nobody waits at a lock while there is work."""

import re
from datetime import datetime
from pathlib import Path

import pytest

from kdrun.cli.sweep import execute
from kdrun.runs.record import find_records
from tests.conftest import FAST, TEACHER
from tests.processes import Forked

pytestmark = pytest.mark.slow
SWEEP = [*FAST, *TEACHER, "schedule.steps=60", "loss=ce,kd", "seed=0,1,2"]


def sweep(*words: str) -> int:
    return execute(words)


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
