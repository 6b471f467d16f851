"""What one sees of a sweep: names, lines, a table, a file for others, a picture, and how long it will take."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from kdrun.cli import views
from kdrun.cli.carrying import _told
from kdrun.cli.status import main as status
from kdrun.cli.views import Lines, Screen, Sight, headline, lines_of
from kdrun.core.lock import Lock
from kdrun.runs.pace import Pace, pace_of
from kdrun.runs.record import write_record
from kdrun.training import standing as standings
from kdrun.training.graph import Graph, Node
from kdrun.training.standing import FOLDER, Kind, Notice, Seen, Standing, sweeps_below
from tests.records import whole

CONFIG = SimpleNamespace(
    method_class=SimpleNamespace(batch_sizes=lambda config: {"labeled": 10}),
    evaluate=SimpleNamespace(corruptions=None, sets=[]),
)


def graph_of(outputs: Path, *names: str, needs: dict[str, str] | None = None) -> Graph:
    """Nodes of these names, each in a directory of its name."""
    graph = Graph()
    for name in names:
        place = f"runs/a/b/n1/{name.replace(' ', '_')}"
        job: Any = SimpleNamespace(
            directory=outputs / place, outputs=outputs, place=place, config=CONFIG, requires={}
        )  # fmt: skip
        role = "teacher" if name.startswith("teacher") else "train"
        node = graph._node(job, role)
        node.name = name
    by_name = {node.name: node for node in graph.nodes.values()}
    for name, others in (needs or {}).items():
        graph._let_wait(by_name[name], [by_name[other] for other in others.split(",")])
    graph._count()
    return graph


def engine(slots: int = 2, inline: bool = False, limit: int | None = None) -> Any:
    config = SimpleNamespace(limit=limit)
    return SimpleNamespace(slots=slots, inline=inline, config=config, queued=frozenset(), queues=False)


def turn(view: Sight, node: Node, state: str, why: str = "") -> None:
    node.state, node.why = state, why
    node.tries += state == "running"
    view.changed(node)


def begin(directory: Path, steps: int | None, logged: int | None, seconds: float = 10, log: str = "") -> None:
    """What a run leaves that has begun so many seconds before it wrote its last line."""
    write_record(directory, whole(status="running", steps=steps))
    (directory / "log.txt").write_text(f"2025-01-01 00:00:00,000 INFO distill on digits: 9 steps of 16\n{log}")
    if logged is not None:
        (directory / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n' * 2000 + f'{{"step": {logged}, "b": 2}}\n')
    for name, when in (("record.json", 1000.0), ("metrics.jsonl", 1000.0 + seconds)):
        if (directory / name).exists():
            os.utime(directory / name, (when, when))


# ------------------------------------------------------------------------------------------------ pace of a run


def test_the_pace_of_a_run_is_read_from_what_it_leaves(tmp_path):
    begin(tmp_path, 200, 50)
    assert pace_of(tmp_path) == Pace(50, 200, 5.0)
    assert pace_of(tmp_path).left == 30


def test_a_run_that_went_on_counts_from_its_checkpoint(tmp_path):
    said = (
        "x INFO resumed at step 20 of 200\nx INFO distill on digits: 9 steps of 16\nx INFO resumed at step 40 of 200\n"
    )
    begin(tmp_path, 200, 50, log=said)
    assert pace_of(tmp_path) == Pace(50, 200, 1.0)


def test_how_a_long_run_began_is_known_however_much_it_has_said_since(tmp_path):
    told = "x INFO s0-1a2b: step 45 of 200, 1,234 images/s, about 4 min left, loss 1.2\n"
    begin(tmp_path, 200, 50, log=f"x INFO resumed at step 40 of 200\n{told * 1000}")
    assert pace_of(tmp_path) == Pace(50, 200, 1.0)


def test_lines_of_an_earlier_session_are_no_pace(tmp_path):
    begin(tmp_path, 200, 90, seconds=-5, log="x INFO resumed at step 40 of 200\n")
    assert pace_of(tmp_path) == Pace(40, 200)
    assert pace_of(tmp_path).left is None


@pytest.mark.parametrize("name", ["record.json", "metrics.jsonl", "log.txt", "all"])
def test_what_cannot_be_read_is_not_known(tmp_path, name):
    begin(tmp_path, 200, 50)
    for path in list(tmp_path.iterdir()):
        if name in (path.name, "all"):
            path.write_bytes(b"\xff{")
            os.utime(path, (1000.0, 1000.0))
    assert pace_of(tmp_path).rate in (None, 5.0)
    assert pace_of(tmp_path / "nowhere") == Pace()


def test_a_run_that_has_not_begun_has_no_step(tmp_path):
    begin(tmp_path, None, None)
    assert pace_of(tmp_path) == Pace()
    begin(tmp_path, 200, None)
    assert pace_of(tmp_path) == Pace()  # of the same time, so as it was read
    os.utime(tmp_path / "record.json", (2000.0, 2000.0))
    assert pace_of(tmp_path) == Pace(0, 200)


# ------------------------------------------------------------------------------------------------- time left


def standing(running: dict[str, float], kinds: dict[str, Kind], slots: int = 2, more: int | None = None) -> Standing:
    """Of runs by name that began at these times."""
    runs = [Seen(name=name, place=name, state="running", since=since, batch=10) for name, since in running.items()]
    counts = {"running": len(runs), "waiting": sum(kind.waiting for kind in kinds.values())}
    return Standing(host="h", process=1, slots=slots, counts=counts, runs=runs, kinds=kinds, more=more)


UNKNOWN = Pace()
NOW = 100.0


@pytest.mark.parametrize(
    ("running", "paces", "kinds", "options", "wanted"),
    [
        ({"a s0": 90}, [UNKNOWN], {"a": Kind(waiting=3)}, {}, None),
        ({"a s0": 90}, [UNKNOWN], {"a": Kind(waiting=3, seconds=30)}, {}, (20 + 3 * 30) / 2),
        ({"a s0": 20}, [UNKNOWN], {"a": Kind(seconds=30)}, {}, 0),  # longer than others
        ({"a s0": 90}, [Pace(50, 100, 5.0)], {"a": Kind(waiting=3)}, {}, (10 + 3 * 20) / 2),  # by the running one
        ({"a s0": 90}, [Pace(0, 100, 1.0)], {"a": Kind(waiting=1, seconds=10)}, {}, 100),  # the longest
        ({}, [], {"a": Kind(waiting=4, seconds=10)}, {"slots": 4}, 10),
        ({}, [], {"a": Kind(waiting=4, seconds=10)}, {"slots": 1, "more": 2}, 20),
        ({}, [], {"a lr=1": Kind(seconds=10), "b": Kind(seconds=90), "a lr=2": Kind(waiting=2)}, {}, 10),
        ({}, [], {"a": Kind(seconds=10), "b": Kind(seconds=30), "c": Kind(waiting=2)}, {}, 20),
    ],
)
def test_the_time_left_is_that_of_runs_alike_over_the_slots(running, paces, kinds, options, wanted):
    assert standing(running, kinds, **options).left(dict(zip(running, paces, strict=True)), NOW) == wanted


# ----------------------------------------------------------------------------------------------------- views


def test_lines_tell_each_change(tmp_path, capsys):
    graph = graph_of(tmp_path, "a s0", "a s1")
    one, two = graph.nodes.values()
    with Lines(graph, engine(), tmp_path) as view:
        turn(view, one, "running")
        turn(view, one, "done")
        turn(view, two, "failed", "loss became nan")
        view.tick()
    assert capsys.readouterr().err.splitlines() == [
        "[0/2] a s0 running", "[1/2] a s0 done", "[2/2] a s1 failed: loss became nan",
    ]  # fmt: skip


def test_what_waits_in_the_queue_of_a_cluster_does_not_run(tmp_path, capsys):
    graph = graph_of(tmp_path, "a s0", "a s1", "b s0")
    one, two, _ = graph.nodes.values()
    cluster = engine(slots=1000)
    cluster.queues, cluster.queued = True, frozenset([str(two.directory)])
    with Lines(graph, cluster, tmp_path) as view:
        turn(view, one, "running")
        turn(view, two, "running")
        found = view.standing()
    assert "[0/3] a s1 submitted" in capsys.readouterr().err.splitlines()
    assert found.counts == {"running": 1, "waiting": 1, "queued": 1}
    assert [(run.name, run.state) for run in found.runs] == [("a s0", "running"), ("a s1", "queued")]
    assert found.kinds["a"].waiting == 1
    known = found.model_copy(update={"kinds": {"a": Kind(waiting=1, seconds=30), "b": Kind(waiting=1, seconds=30)}})
    assert known.left({found.running[0].place: Pace(50, 100, 5.0)}, NOW) == 10 + 2 * 30  # one runs, not a thousand


def test_lines_tell_each_minute_how_things_stand(tmp_path, capsys, monkeypatch):
    graph = graph_of(tmp_path, "a s0", "a s1", "b s0")
    with Lines(graph, engine(), tmp_path) as view:
        turn(view, next(iter(graph.nodes.values())), "running")
        monkeypatch.setattr(views, "MINUTE", 0.0)
        view.took["a"] = [7200.0]
        view.tick()
    assert capsys.readouterr().err.splitlines()[-1] == "0 of 3 done, 1 running, 2 waiting; about 3.0 h left"


def test_a_screen_shows_what_runs_and_what_went_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "OFTEN", 0.0)
    monkeypatch.setattr(views, "SHARE", 0.0)
    graph = graph_of(tmp_path, "a s0", "a s1", "a s2", "b s0")
    one, two, three, four = graph.nodes.values()
    begin(one.directory, 200, 50)
    console = Console(record=True, width=60, height=20, force_terminal=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with Screen(graph, engine(), tmp_path, console) as view:
        turn(view, one, "running")
        turn(view, two, "running")
        turn(view, three, "failed", "loss became\nnan")
        turn(view, four, "blocked", "needs a s2, which failed")
        shown = console.export_text(clear=True)
        view.tick()
        shown = console.export_text(clear=True)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines[-5:] == [
        "run       step  images/s  left",
        "a s0    50/200        50  30 s",
        "a s1  starting",
        "failed a s2: loss became nan",
        "blocked b s0: needs a s2, which failed",
    ]
    assert "0 of 4 done, 2 running, 1 failed, 1 blocked; about " in shown
    end = console.export_text()
    assert "0 of 4 done, 2 running" in end
    assert "images/s" not in end


def test_a_long_table_is_cut(tmp_path):
    runs = {f"a s{k}": 0.0 for k in range(100)}
    found = standing(runs, {})
    lines = lines_of(found, dict.fromkeys(runs, UNKNOWN), 10)
    assert len(lines) == 10
    assert lines[-1] == "and 92 more"


# ------------------------------------------------------------------------------------- the file of a sweep


def test_another_terminal_sees_the_same(tmp_path):
    graph = graph_of(tmp_path, "a s0", "a s1", "a s2")
    one, two, _ = graph.nodes.values()
    begin(one.directory, 200, 50)
    with Lines(graph, engine(inline=True), tmp_path) as view:
        turn(view, one, "running")
        turn(view, two, "failed", "no memory")
        (path,) = (tmp_path / FOLDER).glob("*.json")
        assert {"counts", "runs", "slots"} <= json.loads(path.read_text()).keys()
        lines = status([f"outputs={tmp_path}"]).splitlines()
        assert lines[0].startswith(f"sweep on {os.uname().nodename} (process {os.getpid()}): 0 of 3 done, 1 running, ")
        assert "about " in lines[0]
        assert [line.split() for line in lines[1:5]] == [
            ["run", "step", "images/s", "left"], ["a", "s0", "50/200", "50", "30", "s"],
            ["failed", "a", "s1:", "no", "memory"], [],
        ]  # fmt: skip
        assert headline(view.standing(), {one_run.place: UNKNOWN for one_run in view.standing().running})
    assert not (tmp_path / ".cache").exists()
    assert "sweep" not in status([f"outputs={tmp_path}"])


def test_the_file_is_written_once_a_second_at_most(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(standings, "write_json", lambda path, value: written.append(value))
    graph = graph_of(tmp_path, *(f"a s{k}" for k in range(50)))
    with Sight(graph, engine(), tmp_path) as view:
        for node in graph.nodes.values():
            turn(view, node, "running")
        view.tick()
        assert len(written) == 1
        monkeypatch.setattr(standings, "OFTEN", 0.0)
        view.tick()
        view.tick()
    assert [value["counts"] for value in written] == [{"waiting": 50}, {"running": 50}]


def test_the_file_of_a_killed_sweep_is_removed(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from kdrun.training.standing import *\n"
        "with Notice(Path(sys.argv[1])) as notice:\n"
        "    notice.tell(Standing(host='h', process=1, slots=1, counts={'waiting': 1}, runs=[], kinds={}))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
    assert list(sweeps_below(tmp_path)) == []
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_file_that_is_not_legible_is_passed_over(tmp_path):
    path = tmp_path / FOLDER / "h-1.json"
    with Lock(path.with_suffix(".lock")):
        path.write_text('{"host": "h"')
        assert list(sweeps_below(tmp_path)) == []
        path.write_text('{"host": "h"}')
        assert list(sweeps_below(tmp_path)) == []
    assert list(sweeps_below(tmp_path / "nowhere")) == []


def test_where_no_file_can_be_written_the_sweep_goes_on(tmp_path):
    (tmp_path / ".cache").write_text("a file")
    with Notice(tmp_path) as notice:
        notice.tell(standing({}, {}))
        assert list(sweeps_below(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]
    assert (tmp_path / ".cache").read_text() == "a file"


def test_how_long_runs_took_that_were_done_before(tmp_path):
    graph = graph_of(tmp_path, *(f"a s{k}" for k in range(5)), "a s5")
    for node, seconds in zip(list(graph.nodes.values())[:-1], range(10, 60, 10), strict=True):
        node.state = "done"
        write_record(node.directory, whole(seconds={"total": float(seconds)}))
    with Sight(graph, engine(), tmp_path) as view:
        assert view.standing().kinds == {"a": Kind(waiting=1, seconds=20.0)}


# ------------------------------------------------------------------------------------------ picture and end


def test_a_picture_shows_what_waits_for_what(tmp_path):
    students = [f"kd s{k}" for k in range(3)]
    graph = graph_of(tmp_path, "ce s0", "ce s1", "teacher s0", *students, needs=dict.fromkeys(students, "teacher s0"))
    next(iter(graph.nodes.values())).state = "done"
    assert graph.picture().splitlines() == [
        "teacher s0: waiting",
        "  kd s0 s1 s2: waiting",
        "ce s1: waiting",
        "6 runs: 1 done, 5 waiting (1 of them because others need it)",
    ]


@pytest.mark.parametrize(("limit", "left"), [(1, ["a s0", "b s0", "ce s0"]), (3, ["ce s0"]), (4, []), (9, [])])
def test_a_limit_leaves_in_a_picture_what_a_sweep_would_not_come_to(tmp_path, limit, left):
    graph = graph_of(
        tmp_path, "teacher s0", "a s0", "b s0", "ce s0", needs={"a s0": "teacher s0", "b s0": "teacher s0"}
    )
    graph.leave(limit)
    assert [node.name for node in graph.in_state("left")] == left


def test_what_is_being_stopped_is_told(tmp_path, capsys):
    graph = graph_of(tmp_path, "a s0")
    with Lines(graph, engine(), tmp_path) as view:
        view.stopping(2)
    assert capsys.readouterr().err == "stopping 2 runs, each with a checkpoint\n"


def test_a_long_picture_is_cut(tmp_path):
    graph = graph_of(tmp_path, *(f"a lr={k} s{seed}" for k in range(200) for seed in range(3)))
    lines = graph.picture().splitlines()
    assert len(lines) == 42
    assert lines[-2:] == ["and 480 more", "600 runs: 600 waiting"]


def test_what_several_runs_must_precede_stands_below_the_last(tmp_path):
    graph = graph_of(tmp_path, "teacher a s0", "teacher b s0", "e s0", needs={"e s0": "teacher a s0,teacher b s0"})
    assert "  e s0: waiting (needs teacher a s0, teacher b s0)" in graph.picture().splitlines()


def test_the_end_names_what_is_not_done_and_what_was_tried_again(tmp_path, capsys):
    names = ["teacher s0", *(f"kd s{k}" for k in range(7)), "ce s0", "ce s1", "ce s2"]
    graph = graph_of(tmp_path, *names)
    teacher, *kd, again, left, done = graph.nodes.values()
    teacher.state, teacher.why = "failed", "loss became nan"
    for node in kd:
        node.state, node.why = "blocked", "needs teacher s0, which failed"
    again.state, again.tries, done.state, left.state = "done", 2, "done", "left"
    assert _told(graph, 4, None) == 1
    assert capsys.readouterr().err.splitlines() == [
        "tried again: ce s0 (2 times)",
        f"failed: {teacher.directory}: loss became nan (teacher s0)",
        "blocked: needs teacher s0, which failed: kd s0, kd s1, kd s2, kd s3, kd s4 and 2 more",
        "left: 1 run beyond limit=4; the same command goes on",
        "2 of 10 runs done",
    ]


def test_looking_at_a_run_is_cheap(tmp_path):
    begin(tmp_path, 200, 50)
    began = time.process_time()
    for _ in range(200):
        pace_of(tmp_path)
    assert time.process_time() - began < 1
