"""What was composed, typed and checked is what runs: nothing is made twice in one process."""

import sys
from collections import Counter

import pytest
import torch

from kdrun.config import key, nodes
from kdrun.config.compose import Composer
from kdrun.config.job import Job, planned, planned_job
from kdrun.config.model import ModelConfig
from kdrun.models import network
from kdrun.models.factory import NetworkFactory
from kdrun.runs.record import find_records
from kdrun.training import check
from kdrun.training.finite import IMAGES
from tests.conftest import FAST, TEACHER

pytestmark = pytest.mark.slow


@pytest.fixture
def counted(monkeypatch):
    """`counted(module.function, name=...)`: how often it is called, through whatever module of kdrun imported it."""
    calls = Counter()

    def count(function, name=lambda *_, **__: None):
        def wrapper(*args, **kwargs):
            calls[function.__name__, name(*args, **kwargs)] += 1
            return function(*args, **kwargs)

        for module in [m for n, m in sys.modules.items() if n.startswith("kdrun")]:
            if vars(module).get(function.__name__) is function:
                monkeypatch.setattr(module, function.__name__, wrapper)
        return calls

    return count


def test_a_run_and_its_teacher_are_typed_hashed_and_built_once(train, outputs, counted, monkeypatch):

    check._BUILT.clear()
    network._outline.cache_clear()
    counted(nodes.to_config)
    counted(key.run_key)
    counted(network.build_network, lambda model, **_: (model.args["width"], torch.get_default_device().type))
    calls = counted(network._outline.__wrapped__)
    made = network.Network.__init__

    def outlined(self, spec):
        if torch.get_default_device().type == "meta":
            calls["outline", spec.model["args"]["width"]] += 1
        made(self, spec)

    monkeypatch.setattr(network.Network, "__init__", outlined)
    assert train(*FAST, *TEACHER) == 0
    assert sorted(record["method"] for _, record in find_records(outputs)) == ["distill", "supervised"]
    assert calls["to_config", None] == 1
    assert calls["run_key", None] <= 5
    built = {name: count for name, count in calls.items() if name[0] in ("build_network", "outline")}
    assert built == {
        ("build_network", (4, "cpu")): 1, ("build_network", (8, "cpu")): 1, ("outline", 4): 1, ("outline", 8): 1,
    }  # fmt: skip


def test_each_job_of_a_sweep_is_typed_once(train, outputs, counted):
    calls = counted(nodes.to_config)
    assert train("-m", *FAST, "method=supervised", "schedule.steps=2", "seed=0,1", "hydra.verbose=false") == 0
    assert calls["to_config", None] == 2
    found = {record["seed"]: record["overrides"] for _, record in find_records(outputs)}
    assert [("seed=0" in found[0]), ("seed=1" in found[1])] == [True, True]


def test_a_launchers_worker_has_planned_nothing_and_composes_its_own():
    with Composer() as composer:
        job = composer.job(["loss=kd", "hydra.verbose=true"])
        assert job.overrides == ("loss=kd",)
        with planned([job]):
            assert planned_job(["loss=kd"]) is job
            assert planned_job(["loss=ttm"]) is None
        assert planned_job(["loss=kd"]) is None
        # the directory that Hydra asks for
        assert composer.compose(["loss=kd"]).hydra.run.dir == f"outputs/{Job(job.config).place}"


def test_a_network_that_cannot_be_copied_is_built_anew_for_each_who_asks(monkeypatch):
    def refuse(self, memo):
        raise TypeError("cannot be copied")

    spec = network.NetworkSpec(ModelConfig(name="resnet8").model_dump(), 10, 1, (0.3,), (0.2,))
    shared = [network.outline(spec) for _ in range(2)]
    monkeypatch.setattr(type(shared[0].net), "__deepcopy__", refuse, raising=False)
    anew = [network.outline(spec) for _ in range(2)]
    assert len({id(one) for one in (*shared, *anew)}) == 4
    assert {value.device.type for one in (*shared, *anew) for value in one.state_dict().values()} == {"meta"}
    anew[0].requires_grad_(False)  # as a teacher is
    assert all(parameter.requires_grad for parameter in anew[1].parameters())


def test_zero_shot_asks_its_teacher_about_each_image_once(train, outputs, tmp_path, monkeypatch):
    factory = NetworkFactory(10, 1, (0.3,), (0.2,))
    torch.save(factory.network(ModelConfig(name="resnet8"), seed=1).net.state_dict(), tmp_path / "t.pt")
    words = ["teacher=file", "student@teacher.model=resnet8", f"teacher.path={tmp_path / 't.pt'}"]
    seen: list[int] = []
    forward = network.Network.forward

    def watched(self, view, features=()):
        pixels = getattr(view, "pixels", view)
        if not pixels.is_meta:  # the check asks networks without memory
            seen.append(len(pixels))
        return forward(self, view, features)

    monkeypatch.setattr(network.Network, "forward", watched)
    assert train("method=zero_shot", "dataset=digits", "tracker=none", *words) == 0
    [(_, record)] = find_records(outputs)
    assert "test/teacher/top1" in record["metrics"]
    assert sum(seen[1:]) == 140 + 400  # validation and test images, after a look at IMAGES that are finite
    assert seen[0] == IMAGES
