"""A graph is carried out: in order, once, with retries, past what others hold."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdrun.training import graph as graphs
from kdrun.training import sweep as sweeps
from kdrun.training.engines.engine import Engine, EngineConfig
from kdrun.training.engines.local import Local, places
from kdrun.training.graph import Graph, Node
from kdrun.training.sweep import Sweep
from kdrun.training.task import AGAIN, DONE, FAILED, MISTAKE, Ended


class Script(Engine):
    """Ends runs with the codes that it was given, the last of them again and again."""

    def __init__(self, codes: Mapping[str, list[int]], slots: int = 1, **config: Any) -> None:
        super().__init__(EngineConfig(name="script", **config))
        self.slots, self.codes, self.begun = slots, {name: list(codes) for name, codes in codes.items()}, []
        self.most, self.running, self.stopped = 0, [], False

    def start(self, tasks):
        self.begun += [Path(name).name for name in tasks]
        self.running += tasks
        self.most = max(self.most, len(self.running))

    def wait(self, seconds):
        name = self.running.pop(0)
        codes = self.codes.get(Path(name).name, [DONE])
        return [(name, Ended(codes.pop(0) if len(codes) > 1 else codes[0], "why"))]

    def stop(self):
        self.stopped = True


class Told:
    def __init__(self):
        self.lines = []

    def changed(self, node):
        self.lines.append(f"{node.name} {node.state}")

    def tick(self):
        pass

    def stopping(self, count):
        self.lines.append(f"stopping {count}")


@pytest.fixture
def made(monkeypatch, tmp_path):
    """`made(needs, codes, ...)`: the graph, its engine and what was told, once it was carried out."""
    monkeypatch.setattr(sweeps, "Task", SimpleNamespace(of=lambda job, role, environment: None))
    monkeypatch.setattr(Node, "finished", lambda self: False)
    monkeypatch.setattr(sweeps, "LOOK", 0.01)
    monkeypatch.setattr(graphs, "settled", lambda job: job)
    monkeypatch.setattr(graphs, "short_names", lambda configs, roles: configs)

    def carried(needs: Mapping[str, str], codes: Mapping[str, list[int]] | None = None, **options: Any):
        jobs: dict[str, Any] = {}
        for name, others in needs.items():
            requires = {other: jobs[other] for other in others.split()}
            jobs[name] = SimpleNamespace(directory=tmp_path / name, config=name, requires=requires)
        graph, engine, told = Graph.of(jobs.values()), Script(codes or {}, **options), Told()
        Sweep(graph, engine, told).run()
        return graph, engine, told.lines

    return carried


def states(graph):
    return {node.name: node.state for node in graph.nodes.values()}


def test_what_most_wait_for_goes_first(made):
    _, engine, _ = made({"a": "", "small": "", "b": "small", "large": "", "c": "large", "d": "large"})
    assert engine.begun == ["large", "small", "a", "b", "c", "d"]


def test_slots_are_filled_and_not_more(made):
    _, engine, _ = made(dict.fromkeys("abcde", ""), slots=3)
    assert engine.most == 3


def test_a_failure_is_tried_again_and_then_stops_what_needs_it(made):
    graph, engine, lines = made({"t": "", "a": "t", "b": "a", "c": ""}, {"t": [FAILED]}, retries=2)
    assert engine.begun == ["t", "t", "t", "c"]
    assert states(graph) == {"t": "failed", "a": "blocked", "b": "blocked", "c": "done"}
    assert [node.why for node in graph.nodes.values()] == [
        "why",
        "needs t, which failed",
        "needs a, which is blocked",
        "",
    ]
    assert lines[-1] == "c done"


def test_a_second_try_may_succeed(made):
    graph, engine, _ = made({"a": ""}, {"a": [-9, DONE]})
    assert engine.begun == ["a", "a"]
    assert states(graph) == {"a": "done"}


def test_a_run_whose_job_dies_after_it_is_done(made, monkeypatch):
    begun = []
    monkeypatch.setattr(Node, "finished", lambda node: node.directory.name in begun)
    monkeypatch.setattr(Script, "start", lambda self, tasks: begun.extend(Path(name).name for name in tasks) or
                        self.running.extend(tasks))  # fmt: skip
    graph, _, _ = made({"t": "", "a": "t"}, {"t": [-9]}, retries=0)
    assert begun == ["t", "a"]
    assert states(graph) == {"t": "done", "a": "done"}


def test_a_mistake_is_not_tried_again(made):
    assert made({"a": ""}, {"a": [MISTAKE]})[1].begun == ["a"]


def test_what_is_not_finite_is_not_tried_again(made, monkeypatch):
    monkeypatch.setattr(sweeps, "read_record", lambda _: {"error": {"type": "NonFiniteLoss", "message": "became nan"}})
    graph, engine, _ = made({"a": ""}, {"a": [FAILED]})
    assert engine.begun == ["a"]
    assert next(iter(graph.nodes.values())).why == "became nan"


def test_what_another_process_holds_waits_for_the_end(made):
    graph, engine, lines = made({"a": "", "b": "", "c": ""}, {"a": [AGAIN, DONE]}, retries=0)
    assert engine.begun == ["a", "b", "c", "a"]
    assert "a held" in lines
    assert set(states(graph).values()) == {"done"}


def test_a_held_run_takes_no_slot(made, monkeypatch):
    looks = iter([True, True, True])
    monkeypatch.setattr(sweeps, "held", lambda path: path.name == "a.lock" and next(looks, False))
    _, engine, lines = made({"a": "", "b": ""})
    assert engine.begun == ["b", "a"]
    assert lines[0] == "a held"


def test_a_limit_leaves_the_rest(made):
    graph, engine, _ = made({"t": "", "a": "t", "b": "t"}, limit=2)
    assert engine.begun == ["t", "a"]
    assert states(graph) == {"t": "done", "a": "done", "b": "left"}


def test_an_interruption_stops_the_engine(made, monkeypatch):
    monkeypatch.setattr(Script, "wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    seen = []
    monkeypatch.setattr(Script, "stop", lambda self: seen.append(self))
    with pytest.raises(KeyboardInterrupt):
        made({"a": ""})
    assert seen


@pytest.mark.parametrize(
    ("config", "gpus", "cores", "wanted"),
    [
        ({}, [], 8, [(None, None, 1.0)]),
        ({"slots": 3}, [], 8, [(None, 2, 1.0)] * 3),
        ({}, ["0", "1"], 8, [("0", 4, 1.0), ("1", 4, 1.0)]),
        ({"runs_per_device": 2}, ["3", "5"], 8, [("3", 2, 0.5), ("5", 2, 0.5), ("3", 2, 0.5), ("5", 2, 0.5)]),
        ({"gpus": 1, "slots": 2}, ["0", "1"], 8, [("0", 4, 0.5)] * 2),
        ({"slots": 2, "threads": 1}, [], 1, [(None, 1, 1.0)] * 2),
    ],
)
def test_slots_share_what_there_is(config, gpus, cores, wanted):
    found = places(Local.Config(**config), gpus, cores)
    assert [(place.gpu, place.threads, place.share) for place in found] == wanted
    assert [place.number for place in found] == list(range(len(wanted)))
