"""The benchmarks as they are called, on networks and images so small that the figures mean nothing."""

import dataclasses
import importlib
import json
import math
import multiprocessing
from functools import partial

import pytest
import torch

from kdrun.cli import publish
from kdrun.config.compose import Composer
from kdrun.core.errors import KdrunError
from scripts.bench import distributed, losses, metrics, rivals
from scripts.bench.__main__ import BENCHES, asked, main
from scripts.bench.by_hand import distill, fixmatch, two_heads
from scripts.bench.cases import CASES, KD, Case, contrast
from scripts.bench.harness import Session, session
from scripts.bench.peers import dho_authors, kekmodel, mdistiller, repdistiller
from scripts.bench.step import CaseBench, measure, show
from scripts.bench.written import PANELS, write

SMALL = ("student=resnet8", "teacher=resnet8", "schedule.batch_size=16")
TWO = ("student=resnet8", "schedule.batch_size=4", "dataset.num_labels=100")


def tiny(name, *overrides, **more):
    return Case(name, "resnet8, 8 px", overrides, 6, 6, 50, 100, images=400, side=8, **more)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A session of its own; one thread, or the workers of the peers' loops and the step fight for two cores."""
    for name, value in vars(Session()).items():
        monkeypatch.setattr(session, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_bench_has_its_function():
    for name, (file, minutes) in BENCHES.items():
        assert callable(getattr(importlib.import_module(f"scripts.bench.{file}"), f"bench_{name}"))
        assert minutes > 0


def test_the_harness_measures_and_its_files_are_whole(tmp_path):
    session.bench = "step"
    case = tiny("tiny", "loss=kd", *SMALL, peers=partial(mdistiller, loss=KD), whose="mdistiller", by_hand=distill)
    found = measure(case, times=2, memory=False)
    show(found)
    assert math.isfinite(found.peers_loss)
    assert all(0 < value < 1 for value in (*found.data, *found.host, *found.evaluation))
    paths = write(tmp_path / "bench", {"cpu": "any"}, {"began": 0.0, "rounds": 2}, session.figures)
    assert [path.name for path in paths] == ["bench.json", "bench.svg"]
    read = json.loads(paths[0].read_text())
    by_kind = {figure["kind"]: figure for figure in read["figures"]}
    assert set(by_kind) >= {"loop", "bare", "by_hand", "peers", "images", "data", "host", "evaluation", *PANELS}
    for figure in read["figures"]:
        assert figure["min"] == min(figure["values"]) <= figure["median"] <= max(figure["values"]) == figure["max"]
        assert figure["bench"] == "step"
        assert figure["of"] == (None if figure["kind"] == "loop" else "tiny, resnet8, 8 px, fp32: loop")
    assert len(by_kind["loop"]["values"]) == 2
    assert by_kind["loop / bare step"]["min"] <= 3  # at 8 pixels a step is mostly what surrounds it
    picture = paths[1].read_text()
    assert picture.rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("loop", "overrides", "by_hand"),
    [
        (partial(repdistiller, loss=KD), ("loss=kd", *SMALL), None),
        (contrast, ("loss=crd", *SMALL), None),
        (kekmodel, ("method=fixmatch", "loss=ce", "schedule=fixmatch", *TWO), fixmatch),
        (dho_authors, ("method=dho", "teacher=resnet8", "views=dho", "views.size=8", *TWO), two_heads),
    ],
    ids=["repdistiller", "contrast", "kekmodel", "dho"],
)
def test_loops_of_peers_and_steps_by_hand_train(loop, overrides, by_hand):
    bench = CaseBench(tiny("tiny", *overrides, peers=loop, by_hand=by_hand), steps=2)
    given = bench._given()
    before = [p.detach().clone() for p in given.student.parameters()]
    ran = loop(given)
    assert ran.seconds > 0
    assert math.isfinite(ran.loss)
    assert all(not torch.equal(a, b) for a, b in zip(before, given.student.parameters(), strict=True))
    assert by_hand is None or by_hand(bench)() > 0


def test_every_case_composes_and_peers_are_given_the_teacher_that_they_ask_for():
    with Composer() as composer:
        for case in CASES.values():
            config = composer.typed([*case.overrides, "schedule.precision=bf16", "tracker=none"])
            assert config.method_class.batch_sizes(config)["labeled"] == config.schedule.batch_size
            assert config.teacher.kind().present == (
                case.name not in ("supervised", "fixmatch", "fixmatch_in_three", "kd_fixmatch")
            )
            assert bool(case.peers) == bool(case.whose)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("lop", "unknown bench 'lop'; allowed: start, step"),
        ("round=3", "unknown option 'round'; allowed: rounds, device"),
        ("rounds=none", "rounds: none is no number above 0"),
        ("device=tpu", "device: tpu is neither cpu nor cuda"),
        ("views device=cuda", "views runs on the CPU only; with device=cuda: step"),
        ("views cases=kd", "cases: goes with step or rivals"),
        ("rivals precisions=bf16", "precisions: goes with step"),
    ],
)
def test_mistakes_are_one_line(words, says, capsys):
    with pytest.raises(SystemExit):
        asked(words.split())
    assert says in capsys.readouterr().err


def test_the_command_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(metrics, "bench_metrics", partial(metrics.bench_metrics, 50))
    main(["metrics", "rounds=1", f"write={tmp_path}"])
    assert f"wrote {tmp_path}/bench.json" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json"]  # no ratios of steps, no picture
    read = json.loads((tmp_path / "bench.json").read_text())
    assert {"cpu", "flags", "cores", "memory_gb", "torch", "onednn", "threads", "commit", "date", "load"} <= set(
        read["machine"]
    )
    assert read["ran"]["rounds"] == 1
    assert list(read["ran"]["minutes"]) == ["metrics"]
    assert {one["bench"] for one in read["figures"]} == {"metrics"}
    assert str(tmp_path) not in json.dumps(read)


def test_every_loss_term_is_measured():
    session.rounds = 1
    losses.bench_losses(("resnet8", "resnet8"), 8, calls=1)
    assert [one["what"].partition(":")[0] for one in session.figures[1:]] == list(losses.TERMS)


def test_ranks_and_parts_stand_beside_one_process():
    session.rounds, session.bench = 1, "ranks"
    case = dataclasses.replace(tiny("crd", "loss=crd", *SMALL, peers=contrast), steps=2)  # it gathers
    distributed.bench_ranks([(case, ("schedule.batch_norm=local",))])
    found = {one["what"]: one["median"] for one in session.figures}
    assert 0 < found["of the step, in averaging gradients"] < found["share in exchanging tensors"] < 100
    assert all(value > 0 for value in found.values())
    session.bench, session.figures[:] = "accumulate", []
    distributed.bench_accumulate([tiny("dist", "loss=dist", *SMALL)], batch=16, memory=False)
    assert [one["what"] for one in session.figures[1:]] == ["accumulate=2 / whole", "accumulate=4 / whole"]
    assert multiprocessing.active_children() == []


def test_terms_and_methods_stand_beside_a_bare_step_or_say_why_they_cannot(monkeypatch, capsys):
    session.rounds, session.bench = 1, "rivals"
    small = {"student": "resnet8", "teacher": "resnet8", "batch": 4, "steps": 1, "images": 400, "side": 8}
    for name in ("TAUGHT", "GUESSED"):
        monkeypatch.setattr(rivals, name, rivals.Setting("resnet8, 8 px", **small))
    rivals.bench_rivals("mae,nd,linearity,vitkd,fixmatch,peer_distill,zero_shot")
    found = {(one["case"], one["kind"]): one for one in session.figures}
    kinds = {name: {kind for case, kind in found if case == name} for name, _ in found}
    alone = {"step", "step / ce", "images"}
    assert kinds == {
        "mae": alone, "linearity": alone, "nd": {*alone, "step / kd"}, "fixmatch": alone,
        "peer_distill": {*alone, "step / kd"},
    }  # fmt: skip
    assert found["fixmatch", "images"]["median"] == 4 + 2 * 28
    assert {one["registry"] for one in session.figures} == {"loss", "method"}
    out = capsys.readouterr().out
    assert "loss vitkd: skipped, loss.vitkd: the student gives no tokens" in out
    assert "method zero_shot: skipped, trains no student" in out
    with pytest.raises(SystemExit, match="cases: unknown 'nope'; allowed: ab, "):
        rivals.bench_rivals("kd,nope")


def test_what_was_measured_is_no_published_table(tmp_path):
    write(tmp_path / "bench", {}, {"began": 0.0}, [])
    assert publish.main(["check=true", f"published={tmp_path}"]) == "as their records make them: nothing is published"
    (tmp_path / "demo").mkdir()  # a table's folder that has lost its files still is one
    with pytest.raises(KdrunError, match=r"demo/published\.json: is not there"):
        publish.main(["check=true", f"published={tmp_path}"])


def test_all_is_the_default_and_on_cuda_what_can_run_there():
    assert asked([])[0] == list(BENCHES)
    assert asked(["device=cuda"])[0] == ["step"]
    assert asked(["rounds=2", "step", "cases=kd"]) == (
        ["step"],
        {"rounds": "2", "device": "cpu", "write": "", "cases": "kd", "precisions": "fp32,bf16"},
    )
