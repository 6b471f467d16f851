"""What a search goes by, and over; how more runs come into a sweep as it goes."""

from types import SimpleNamespace

import pytest

from kdrun.cli.search import Dimension, space_of
from kdrun.config.compose import Composer
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.training.objective import Objective
from kdrun.training.task import DONE, FAILED
from tests.unit.test_sweep import Script, Told, made, states  # noqa: F401

RECORD = {"status": "done", "key": "k", "headline": "student", "metrics": {"val/student/top1": 0.5}}


def space(*words: str) -> tuple[list[str], list[Dimension]]:
    with Composer() as composer:
        composer.expand(words, True)
        return space_of(composer.swept(words))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("test/top1", "the test images choose nothing; give val/top1"),
        ("test/student/ece", "the test images choose nothing"),
        ("top1", "write val/<figure> or val/<net>/<figure>"),
        ("train/loss", "not of validation images"),
        ("val/top2", "no figure of which more or less is better; nearest: top5"),
        ("val/confidence", "no figure of which more or less is better"),
    ],
)
def test_what_no_search_goes_by(given, line):
    with pytest.raises(ConfigError, match=f"^objective: {given}: .*{line}"):
        Objective.of(given)


@pytest.mark.parametrize(
    ("given", "direction"),
    [(None, "maximize"), ("val/student_2/top5", "maximize"), ("val/ece", "minimize"), ("val/nll", "minimize"),
     ("val/brier", "minimize")],
)  # fmt: skip
def test_the_direction_follows_the_figure(given, direction):
    assert Objective.of(given).direction == direction


def test_the_figure_is_the_headlines_and_only_of_a_run_that_is_done():
    assert Objective.of(None).value(RECORD) == 0.5
    with pytest.raises(KdrunError, match="has no val/student/nll"):
        Objective.of("val/nll").value(RECORD)
    with pytest.raises(KdrunError, match=r"has no val/student/top1$"):
        Objective.of(None).value(RECORD | {"metrics": {"val/student/top1": None}})
    with pytest.raises(KdrunError, match="became nan"):
        Objective.of(None).value(RECORD | {"status": "failed", "error": {"message": "became nan"}})


def test_a_space_is_what_hydra_would_sweep_over():
    fixed, dimensions = space(
        "search=optuna", "loss=ce,kd", "schedule.lr=tag(log,interval(0.01,1))", "schedule.steps=range(10,31,10)",
        "dataset.num_labels=50", "student.args.width=int(interval(2,8))", "schedule.batch_size=choice(8,16)",
    )  # fmt: skip
    assert fixed == ["dataset.num_labels=50"]
    assert dimensions == [
        Dimension("loss", ("ce", "kd")),
        Dimension("schedule.lr", low=0.01, high=1.0, log=True),
        Dimension("schedule.steps", low=10, high=30, step=10),
        Dimension("student.args.width", low=2, high=8),
        Dimension("schedule.batch_size", ("8", "16")),
    ]
    assert [dimension.first() for dimension in dimensions][:3] == ["loss=ce", "schedule.lr=0.01", "schedule.steps=10"]


@pytest.mark.parametrize("given", ["tag(log,interval(0,1))", "interval(1,0.1)", "tag(log,range(1,9,2))"])
def test_a_range_that_is_none(given):
    with pytest.raises(ConfigError, match=r"^schedule\.lr: "):
        space("search=optuna", f"schedule.lr={given}")


class Given:
    """Gives jobs in order, at most `most` open ones were asked for."""

    def __init__(self, jobs, hopeless=()):
        self.jobs, self.told, self.frees, self.to_stop = list(jobs), [], [], set(hopeless)

    def more(self, free):
        self.frees.append(free)
        given, self.jobs = self.jobs[:free], self.jobs[free:]
        return [(job, f"trial {job.config}") for job in given]

    def ended(self, node):
        self.told.append((node.name, node.state))

    def hopeless(self, nodes):
        return [node for node in nodes if node.job.config in self.to_stop]


@pytest.fixture
def fed(made, monkeypatch, tmp_path):  # noqa: F811
    """`fed(needs, codes, ...)`: the graph, the engine and the source of a sweep that was given all of its runs late."""
    from kdrun.training import sweep as sweeps
    from kdrun.training.graph import Graph

    monkeypatch.setattr(sweeps, "_note", lambda node: None)

    def carried(needs, codes=None, hopeless=(), **options):
        jobs = {}
        for name, others in needs.items():
            requires = {other: jobs[other] for other in others.split()}
            jobs[name] = SimpleNamespace(directory=tmp_path / name, config=name, requires=requires)
        source = Given([job for name, job in jobs.items() if not name.startswith("t")], hopeless)
        graph, engine = Graph.of([]), Script(codes or {}, **options)
        engine.ended = []
        engine.end = engine.ended.append
        sweeps.Sweep(graph, engine, Told(), source=source).run()
        return graph, engine, source

    return carried


def test_a_source_fills_the_slots_and_shares_the_teacher(fed):
    _, engine, source = fed({"t": "", "a": "t", "b": "t", "c": "", "d": ""}, slots=2)
    assert engine.begun == ["t", "a", "b", "c", "d"]
    assert engine.most == 2
    assert max(source.frees) == 2
    assert source.told == [("t", "done"), *((f"trial {name}", "done") for name in "abcd")]


def test_a_failed_teacher_is_told_of_and_ends_the_sweep(fed):
    _, _, source = fed({"t": "", "a": "t", "b": ""}, {"t": [FAILED]}, retries=0)
    assert source.told == [("t", "failed"), ("trial a", "blocked"), ("trial b", "done")]


def test_a_limit_asks_for_no_more(fed):
    _, engine, source = fed(dict.fromkeys("abcd", ""), limit=2)
    assert engine.begun == ["a", "b"]
    assert [job.config for job in source.jobs] == ["c", "d"]


def test_what_is_hopeless_is_ended_and_tried_no_more(fed):
    _, engine, source = fed({"a": "", "b": "", "c": ""}, {"b": [143]}, hopeless="b", slots=2)
    assert [name.rpartition("/")[2] for name in engine.ended] == ["b"]
    assert engine.begun == ["a", "b", "c"]
    assert source.told == [("trial a", "done"), ("trial b", "pruned"), ("trial c", "done")]


def test_what_is_done_already_takes_no_slot(fed, monkeypatch):
    from kdrun.training.graph import Node

    monkeypatch.setattr(Node, "finished", lambda self: True)
    _, engine, source = fed(dict.fromkeys("abc", ""), {"a": [DONE]})
    assert engine.begun == []
    assert [state for _, state in source.told] == ["done"] * 3
