"""Tip-Adapter-F over a tiny CLIP: logits and keys by hand, the search, whole runs; and the teacher alone as a run."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from kdrun.cli.analyze import main as analyze
from kdrun.config.compose import Composer
from kdrun.config.key import run_key
from kdrun.core.errors import ConfigError, DataError, KdrunError
from kdrun.data.loader import Loader
from kdrun.data.splits import Split
from kdrun.data.views.view import View, clean
from kdrun.methods.pool import Start
from kdrun.methods.requires import teacher_runs
from kdrun.methods.tip_adapter import TipAdapterF
from kdrun.runs.finished import FinishedRun
from kdrun.runs.record import find_records
from kdrun.teachers.kind import make_teacher
from kdrun.teachers.teacher import Teacher
from kdrun.teachers.tip_adapter import AdapterConfig, Cache, TipAdapter, trained
from kdrun.training.assembly import Assembly
from kdrun.training.check import check
from kdrun.training.evaluator import Evaluator
from kdrun.training.loop import Loop
from kdrun.training.tracking import Tracking
from tests.conftest import FAST
from tests.contract.test_ranks import compare, first_step
from tests.ranks import over as over_ranks
from tests.unit.test_clip import PIXELS, SETUP, spec


def members(folder) -> str:
    return f"teacher.members=[{{source: open_clip, path: {folder}}}]"


def over(folder) -> list[str]:
    return [*FAST, "teacher=tip_adapter", members(folder), "teacher.adapter.search_step=[5, 4]"]


def composed(*line):
    with Composer() as composer:
        return composer.typed(list(line))


# ------------------------------------------------------------------------------------------------------- by hand


def test_logits_are_those_of_the_clip_and_the_votes_of_the_shots(folder):
    clip = make_teacher(spec(path=str(folder)), SETUP, {})
    torch.manual_seed(0)
    target = torch.tensor([2, 0, 0, 1, 2])
    cache = Cache(target, 16, 3, 1.3, 5.5)
    cache.keys.data = F.normalize(torch.randn(5, 16), dim=1)
    made = TipAdapter(clip, cache)
    out = Teacher(made)(PIXELS, ("prelogits",))
    zero = Teacher(clip)(PIXELS, ("prelogits",))
    wanted = zero.logits.clone()
    for i, image in enumerate(zero.features["prelogits"]):
        for key, label in zip(cache.keys.detach(), target.tolist(), strict=True):
            wanted[i, label] += 1.3 * torch.exp(-5.5 * (1 - (image * key).sum()))
    torch.testing.assert_close(out.logits, wanted)
    assert torch.equal(out.features["prelogits"], zero.features["prelogits"])
    assert torch.equal(Teacher(made).class_embeddings, clip.class_embeddings)
    assert Teacher(made)(PIXELS).features == {}
    with torch.autocast("cpu", torch.bfloat16):
        assert (made(PIXELS).logits - clip(PIXELS).logits).dtype == torch.float32


def test_its_steps_can_be_captured(folder, tmp_path):
    """As in test_captured.py, by adamw: but for the learning rate's rounding to float32 the same."""
    config = teacher_runs(composed(*over(folder)), composed(*over(folder)).teacher)["teacher"]
    schedule, found = config.schedule.replace(steps=5, epochs=None), []
    for kind in ("fused", "graph"):
        parts = Assembly.of(config.replace(schedule=schedule.replace(**{kind: True})), torch.device("cpu"))
        parts.method.train()
        (tmp_path / kind).mkdir()
        loop = Loop(parts.method, parts.loader, Evaluator({}, 1000), parts.clock, tmp_path / kind, Tracking(), "key")
        loop.run()
        parts.loader.close()
        found.append(parts.method.cache.keys.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    assert not torch.equal(found[0], Assembly.of(config, torch.device("cpu")).method.cache.keys)


def begun(config):
    """What `before` makes of the keys, and a step from there."""
    run = Assembly.of(config, torch.device("cpu"))
    run.method.train().before(
        Start(required={}, pool=run.pool(print), batches=run.loader.batch, first=run.clock.total_steps, fresh=True)
    )
    keys = run.method.cache.keys.detach().clone()
    return {**first_step(run, exact=False), "keys": keys}


def test_processes_make_the_same_keys_and_steps_together(folder, tmp_path):
    config = teacher_runs(composed(*over(folder)), composed(*over(folder)).teacher)["teacher"]
    ranks, one = over_ranks(2, tmp_path, begun, config), begun(config)
    assert torch.equal(ranks[0]["keys"], ranks[1]["keys"])
    torch.testing.assert_close(ranks[0]["keys"], one["keys"])
    compare(ranks[0], one)


def test_the_grids_are_the_authors_and_the_search_finds_what_trying_all_finds():
    sharpness, ratio = AdapterConfig().grids
    assert (len(sharpness), len(ratio)) == (200, 20)
    assert (sharpness[0], ratio[0]) == (0.1, 0.1)
    assert sharpness[1] == pytest.approx(0.1 + 6.9 / 200)
    assert ratio[-1] == pytest.approx(0.1 + 19 * 2.9 / 20)
    torch.manual_seed(1)
    cache = Cache(torch.randint(4, (8,)), 6, 4, 1.0, 1.0)
    cache.keys.data = F.normalize(torch.randn(8, 6), dim=1)
    image, zero, target = F.normalize(torch.randn(40, 6), dim=1), torch.randn(40, 4), torch.randint(4, (40,))
    grid = ([0.5, 2.0, 6.0], [0.1, 1.0, 4.0])

    def score(at):
        b, a = at
        one_hot = F.one_hot(cache.target, 4).float()
        logits = zero + a * torch.exp(-b * (1 - image @ cache.keys.detach().T)) @ one_hot
        return ((logits.argmax(1) == target).sum().item(), -F.cross_entropy(logits, target).item())

    spec = SimpleNamespace(grids=grid, search=True)
    method = SimpleNamespace(cache=cache, spec=spec, _asked=None, _answer=None)
    method._candidates = partial(TipAdapterF._candidates, method)
    TipAdapterF.choice(method).make({"zero_shot": zero, "image": image}, target)
    found = cache.sharpness.item(), cache.residual_ratio.item()
    assert found == pytest.approx(max(((b, a) for b in grid[0] for a in grid[1]), key=score))


# ---------------------------------------------------------------------------------------------------- whole runs


def own(outputs, method):
    return [(d, r) for d, r in find_records(outputs) if r["method"] == method]


def content(directory):
    record = json.loads((directory / "record.json").read_text())
    files = [(directory / "method.safetensors").read_bytes(), (directory / "metrics.jsonl").read_text()]
    predictions = [p.read_bytes() for p in sorted((directory / "predictions").iterdir())]
    return files, predictions, record["metrics"]


@pytest.mark.slow
def test_one_cache_for_all_students_of_the_same_labels_and_a_killed_one_goes_on_bitwise(
    folder, train, outputs, tmp_path, monkeypatch
):  # fmt: skip
    """Views without randomness, so that keys are the features of the images themselves before they are trained."""
    line = [*over(folder), "views.weak.pad=0", "schedule.steps=2", "execution.checkpoint_every_steps=3"]
    adapter = ["teacher.steps=8"]
    assert train(*line, *adapter) == 0
    assert train(*line, *adapter, "method=dho", "schedule.lr=0.01") == 0
    [(directory, record)] = own(outputs, "tip_adapter")
    whole = content(directory)
    assert (record["steps"], record["nets"], record["headline"]) == (8, {}, "adapter")
    for name in ("residual_ratio", "sharpness"):
        assert f"val/adapter/{name}" in record["metrics"]
    for method in ("distill", "dho"):
        [(student, found)] = own(outputs, method)
        assert found["requires"]["teacher"] == record["key"]
        assert found["split"]["hash"] == record["split"]["hash"]
        assert found["metrics"]["test/teacher/top1"] == record["metrics"]["test/adapter/top1"]
        assert found["metrics"]["test/teacher/nll"] == pytest.approx(record["metrics"]["test/adapter/nll"], rel=1e-5)

    # opened again, each tells what it told
    for place, name in ((directory, "adapter"), (student, "teacher")):
        rebuilt = Assembly.restored(FinishedRun.open(place))
        images, index = torch.from_numpy(rebuilt.arrays.test_images), torch.arange(100)
        with torch.no_grad():
            again = rebuilt.predict(View(clean(images, index), index))[name]
        wanted = FinishedRun.open(place).predictions("test", name)[0][:100]
        torch.testing.assert_close(again, wanted, atol=1e-4, rtol=1e-4)

    # the keys before training, from a run whose steps change next to nothing
    still = "teacher.schedule={steps: 1, lr: 1e-12, batch_size: 50}"
    assert train(*line, still, "teacher.adapter.search=false") == 0
    [(place, _)] = [(d, r) for d, r in own(outputs, "tip_adapter") if r["steps"] == 1]
    rebuilt = Assembly.restored(FinishedRun.open(place))
    clip = make_teacher(rebuilt.config.teacher, rebuilt.factory, {})
    labeled = torch.from_numpy(rebuilt.split.labeled)
    images = clean(torch.from_numpy(rebuilt.arrays.train_images), labeled)
    with torch.no_grad():
        wanted = clip(images, ("prelogits",)).features["prelogits"]
    fixed = AdapterConfig(search=False)
    made = trained(clip, place, 10, fixed)
    torch.testing.assert_close(made.cache.keys.detach(), wanted, atol=1e-5, rtol=1e-5)
    assert made.cache.target.tolist() == rebuilt.arrays.train_labels[labeled.numpy()].tolist()
    assert made.cache.residual_ratio.item() == pytest.approx(1.17)
    save_file({"cache.keys": torch.zeros(50, 7), "cache.target": made.cache.target}, place / "method.safetensors")
    with pytest.raises(DataError, match="does not hold the keys of a Tip-Adapter over"):
        trained(clip, place, 10, fixed)  # of another width
    (place / "method.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a readable file of weights"):
        trained(clip, place, 10, fixed)

    plain = Loader.batch

    def broken(self, step):
        if step == 5:
            raise KdrunError("broken off")
        return plain(self, step)

    directory.rename(tmp_path / "whole")
    [(student, _)] = own(outputs, "dho")
    student.rename(tmp_path / "student")
    monkeypatch.setattr(Loader, "batch", broken)
    assert train(*line, *adapter, "method=dho", "schedule.lr=0.01") == 1
    monkeypatch.undo()
    assert train(*line, *adapter, "method=dho", "schedule.lr=0.01") == 0
    assert "resumed at step 3 of 8" in (directory / "log.txt").read_text()
    assert content(directory) == whole


def test_the_run_of_the_cache_follows_the_labels_and_nothing_else(folder):
    def key(*more):
        config = composed(*over(folder), *more)
        return run_key(teacher_runs(config, config.teacher)["teacher"])

    plain = key()
    assert key("schedule.steps=7", "student=resnet14", "method=dho", "teacher.temperature=2") == plain
    assert key("seed=1") != plain
    assert key("seed=1", "dataset.split_seed=0") == plain
    for other in ("dataset.num_labels=20", "teacher.epochs=200", "teacher.adapter.residual_ratio=2", "teacher.seed=1"):
        assert key(other) != plain
    run = teacher_runs(config := composed(*over(folder)), config.teacher)["teacher"]
    assert (run.schedule.batch_size, run.schedule.epochs, run.schedule.optimizer_args) == (256, 20.0, {"eps": 1e-4})
    for labels, sizes, steps in ((50, [50], 20), (300, [256, 44], 40)):  # the authors' loader: no image twice in a pass
        assembly = Assembly.of(run, torch.device("cpu"))
        assembly.split = Split(np.arange(labels), np.arange(labels), np.arange(0), 1)
        assert ([found["labeled"] for found in assembly.batch_sizes], assembly.clock.total_steps) == (sizes, steps)
    assert teacher_runs(composed("teacher=digits_tip_adapter", "dataset.num_labels=20"),
                        composed("teacher=digits_tip_adapter", "dataset.num_labels=20").teacher).keys() == {
        "teacher", "teacher_1"
    }  # fmt: skip


@pytest.mark.slow
def test_the_teacher_alone_is_a_run_that_all_seeds_and_shots_share(folder, train, outputs):
    clip = ["teacher=open_clip", f"teacher.path={folder}", "teacher.pretrained=null", "teacher.model=null"]
    line = [*FAST, "method=zero_shot", *clip]
    assert train(*line) == 0
    for other in ("seed=3", "dataset.num_labels=20", "schedule.steps=3", "loss=kd", "views.mix.kind=mixup"):
        assert run_key(composed(*line, other)) == run_key(composed(*line)), other
    assert run_key(composed(*line, "dataset.val_fraction=0.2")) != run_key(composed(*line))
    [(directory, record)] = own(outputs, "zero_shot")
    assert (record["headline"], record["steps"], record["nets"], record["seed"]) == ("teacher", 0, {}, 0)
    assert 0 <= record["metrics"]["test/teacher/top1"] <= 1
    run = FinishedRun.open(directory)
    assert run.config.students == []
    opened = Assembly.restored(run)
    index = torch.arange(2)
    assert list(opened.predict(View(clean(torch.from_numpy(opened.arrays.test_images), index), index))) == ["teacher"]
    with pytest.raises(KdrunError, match="method=zero_shot trains no student"):
        analyze(["linear_probe", f"run={directory}"])

    adapted = [*over(folder), "method=zero_shot"]
    keys = [run_key(composed(*adapted, *more)) for more in ([], ["seed=1"], ["dataset.num_labels=20"])]
    assert len(set(keys)) == 3
    taught = [*FAST, "method=zero_shot", "teacher=resnet8"]
    assert run_key(composed(*taught, "schedule.steps=3")) != run_key(composed(*taught))  # as long as its student's
    with pytest.raises(ConfigError, match=r"method=zero_shot needs a teacher, but teacher\.source=none"):
        composed("method=zero_shot", "teacher=none")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["dataset.num_labels=null"], r"tip_adapter keeps the labeled shots, and all images are labeled; give dataset"),
        (["teacher.members=[]"], r"a tip_adapter stands on one CLIP in teacher\.members, got 0"),
        (
            ["teacher.members=[{source: train, model: resnet8}]"],
            r"teacher\.members\.0\.source: a tip_adapter stands on a CLIP, got train",
        ),
        (
            ["teacher.zeta=0.01"],
            r"teacher\.zeta: not for source=tip_adapter; source=clip and open_clip have it \(of a member: teacher\.members\.0\.zeta\)",
        ),
        (
            ["teacher.num_labels=20"],
            r"teacher\.num_labels: not for source=tip_adapter; source=clip and distilled and train have it",
        ),
        (["teacher.adapter.search_scale=[0.1, 3.0]"], r"teacher\.adapter\.search_scale\.0: must be greater than 0\.1"),
        (["method=tip_adapter"], r"method=tip_adapter stands on a CLIP, got tip_adapter"),
    ],
)
def test_mistakes(folder, line, message):
    method = [part for part in line if part.startswith("method=")]  # before the teacher, which it would replace
    with pytest.raises(ConfigError, match=message):
        composed(*method, *over(folder), *(part for part in line if part not in method))


def test_two_clips_or_no_package(folder, monkeypatch):
    two = f"teacher.members=[{{source: open_clip, path: {folder}}}, {{source: open_clip, path: {folder}}}]"
    with pytest.raises(ConfigError, match=r"stands on one CLIP in teacher\.members, got 2"):
        composed(*over(folder), two)
    config = composed(*over(folder), "seed=77")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install kdrun\[clip\]"):
        check(config)
