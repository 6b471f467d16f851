"""What Ray and SLURM are asked for, and how what they answer is read, without either."""

import pickle
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from kdrun.core.errors import ConfigError
from kdrun.training.engines import commands
from kdrun.training.engines import ray as on_ray
from kdrun.training.engines import slurm as on_slurm
from kdrun.training.engines.commands import gpus_of, require_partition, require_possible
from kdrun.training.engines.ray import Ray, require_cluster, share
from kdrun.training.engines.slurm import Allocation, Slurm
from kdrun.training.task import AGAIN, DONE, Ended, Task


@pytest.mark.parametrize(
    ("config", "nodes", "wanted"),
    [
        ({}, [(2, 0)], (2, 1, 0, 1)),
        ({"slots": 4}, [(2, 0)], (4, 0.5, 0, 1)),
        ({"slots": 2}, [(8, 0), (8, 0)], (2, 8, 0, 8)),
        ({"slots": 1}, [(8, 0), (8, 0)], (1, 8, 0, 8)),
        ({"threads": 3}, [(8, 0), (4, 0)], (3, 3, 0, 3)),
        ({}, [(8, 2), (64, 0)], (2, 4, 1, 4)),
        ({"runs_per_device": 4}, [(8, 2), (8, 2)], (16, 1, 0.25, 1)),
        ({"gpus": 1, "runs_per_device": 2}, [(8, 2)], (2, 4, 0.5, 4)),
        ({"gpus": 0, "threads": 2}, [(8, 2)], (4, 2, 0, 2)),
    ],
)
def test_each_run_has_its_share_of_a_cluster(config, nodes, wanted):
    assert share(Ray.Config(**config), nodes) == wanted


@pytest.mark.parametrize(
    ("config", "nodes", "says"),
    [
        ({"gpus": 1}, [(2, 0)], "engine.gpus: 1 were asked for, and the cluster has 0"),
        ({"threads": 4}, [(2, 0), (2, 0)], "engine.threads: 4 cores for each run, and the largest machine has 2"),
        ({}, [], "no machine of the cluster has a core"),
    ],
)
def test_what_a_cluster_has_not_is_refused(config, nodes, says):
    with pytest.raises(ConfigError, match=says):
        share(Ray.Config(**config), nodes)


@pytest.mark.parametrize("address", ["nonsense", "host:port", "ray://"])
def test_an_address_is_one(address):
    with pytest.raises(ConfigError, match="expected auto, host:port or ray://host:port"):
        require_cluster(address)


def test_no_cluster_at_an_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ConfigError, match=f"engine.address: no cluster at {address}"):
            require_cluster(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_something_else_at_an_address(scheme, monkeypatch):
    monkeypatch.setattr(on_ray, "CONNECT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="does not answer as Ray"):
        require_cluster(f"{scheme}127.0.0.1:{other.getsockname()[1]}")


def test_a_head_that_is_gone_ends_the_sweep_after_a_while():
    engine = Ray.__new__(Ray)
    with socket.create_server(("127.0.0.1", 0)) as head:
        engine.head = f"127.0.0.1:{head.getsockname()[1]}"
        engine.asked = engine.seen = time.monotonic() - on_ray.ASK
        engine._require_head()
        assert engine.seen == engine.asked > time.monotonic() - 1
    engine.asked -= on_ray.ASK
    engine._require_head()
    engine.asked, engine.seen = engine.asked - on_ray.ASK, engine.seen - on_ray.GONE
    with pytest.raises(ConfigError, match=r"Ray's head at 127.* is gone .*; start one, and the same command goes on"):
        engine._require_head()


def test_looking_for_an_engine_loads_nothing_heavy():
    program = (
        "import sys, kdrun.core.registry as r; r.load('engine'); sys.exit({'torch', 'ray'} & set(sys.modules) != set())"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(("module", "package", "extra"), [(on_ray, "ray", "ray"), (on_slurm, "submitit", "slurm")])
def test_an_engine_that_is_not_installed_names_its_extra(module, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"engine={extra}: .*pip install 'kdrun\\[{extra}\\]'"):
        module.installed()


def test_no_sbatch(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="engine=slurm: there is no sbatch here"):
        Slurm(Slurm.Config())


@pytest.fixture
def answers(monkeypatch):
    """`answers[command] = (code, out, err)`, and the commands that were given."""
    given, asked = {}, []

    def command(*words):
        asked.append(words)
        return given.get(words[0], (0, "", ""))

    monkeypatch.setattr(on_slurm, "command", command)
    monkeypatch.setattr(commands, "command", command)
    require_possible.cache_clear()
    return given, asked


def test_an_unknown_partition_is_refused_with_the_known_ones(answers):
    answers[0]["sinfo"] = (0, "main\nlong\n", "")
    require_partition("long")
    require_partition(None)
    with pytest.raises(ConfigError, match=r"engine.partition: unknown partition 'man'; nearest: main \(allowed: long"):
        require_partition("man")


def test_slurm_that_does_not_answer(answers):
    answers[0]["sinfo"] = (1, "", "slurm_load_partitions: error: Unable to contact slurm controller\n")
    with pytest.raises(ConfigError, match="engine=slurm: SLURM does not answer: slurm_load_partitions"):
        require_partition(None)


def test_a_signal_comes_before_the_limit():
    with pytest.raises(ValueError, match="signal_seconds"):
        Slurm.Config(minutes=1, signal_seconds=60)


@pytest.fixture
def engine(monkeypatch, answers, tmp_path):
    """A SLURM engine of two runs a job, whose jobs do nothing but lie in `engine.folder`."""
    names = ("FailedJobError", "FailedSubmissionError")
    errors = SimpleNamespace(**{name: type(name, (RuntimeError,), {}) for name in names})
    monkeypatch.setattr(on_slurm, "installed", lambda: SimpleNamespace(core=SimpleNamespace(utils=errors)))
    monkeypatch.setattr(on_slurm.shutil, "which", lambda _: "sbatch")
    monkeypatch.setattr(on_slurm, "ASK", 0.0)
    monkeypatch.setattr(on_slurm, "GRACE", 0.0)
    monkeypatch.setattr(on_slurm, "LOOK", 0.01)
    made = Slurm(Slurm.Config(runs_per_job=2))
    made.folder = tmp_path

    def submit_array(makers):
        made.sent = makers
        paths = [SimpleNamespace(result_pickle=tmp_path / f"7_{k}.pkl", stderr=tmp_path / f"7_{k}.err") for k in (0, 1)]
        return [SimpleNamespace(job_id=f"7_{k}", paths=paths[k]) for k in range(len(makers))]

    monkeypatch.setattr(Slurm, "_executor", lambda self, folder: SimpleNamespace(submit_array=submit_array))
    made.start({name: Task({}, name) for name in "abc"})
    return made


def leave(engine, name, outcome, value):
    (engine.folder / name).write_bytes(pickle.dumps((outcome, value)))


def test_runs_are_packed_into_jobs(engine):
    assert [list(maker.texts) for maker in engine.sent] == [["a", "b"], ["c"]]
    assert Task.from_text(engine.sent[1].texts["c"]) == Task({}, "c")


def test_what_a_job_left_says_how_its_runs_ended(engine, answers):
    answers[0]["squeue"] = (0, "7_0 R\n7_1 PD\n", "")
    assert engine.wait(0.02) == []
    leave(engine, "7_0.pkl", "success", {"a": (DONE, ""), "b": (1, "broken")})
    assert engine.wait(1) == [("a", Ended(DONE)), ("b", Ended(1, "broken"))]
    (engine.folder / "7_1.err").write_text("error: a mistake\n")
    leave(engine, "7_1.pkl", "success", {"c": (2, "")})
    assert engine.wait(1) == [("c", Ended(2, "a mistake"))]
    assert engine.failures


def test_what_waits_in_the_queue_is_told_from_what_runs(engine, answers):
    assert engine.queued == {"a", "b", "c"}
    for told, queued in (("7_0 R\n7_1 PD\n", "c"), ("7_0 PD\n7_1 CG\n", "ab"), ("7_0 R\n7_1 R\n", "")):
        answers[0]["squeue"] = (0, told, "")
        assert engine.wait(0.02) == []
        assert engine.queued == set(queued)


def test_a_traceback_is_a_failure(engine):
    leave(engine, "7_1.pkl", "error", "Traceback:\n  a line\nImportError: no module\n")
    assert engine.wait(1) == [("c", Ended(1, "ImportError: no module"))]


def test_a_job_that_slurm_has_forgotten_is_lost(engine, answers):
    answers[0]["squeue"] = (0, "7_0 R\n", "")
    (engine.folder / "7_1.err").write_text("slurmstepd: error: DUE TO TIME LIMIT\n")
    ((name, ended),) = engine.wait(1)
    assert (name, ended.code) == ("c", -9)
    assert "job 7_1: slurmstepd: error: DUE TO TIME LIMIT" in ended.text


def test_where_slurm_does_not_answer_nothing_is_lost(engine, answers):
    answers[0]["squeue"] = (1, "", "timed out")
    assert engine.wait(0.05) == []


@pytest.fixture
def broken(engine, monkeypatch):
    """The same engine, whose sbatch fails."""

    def submit_array(makers):
        raise engine.submitit.core.utils.FailedJobError("sbatch: error: Unable to contact slurm controller")

    monkeypatch.setattr(Slurm, "_executor", lambda self, folder: SimpleNamespace(submit_array=submit_array))
    return engine


def test_what_slurm_refuses_ends_the_sweep(broken):
    with pytest.raises(ConfigError, match=r"^engine=slurm: Unable to contact slurm controller$"):
        broken.start({"d": Task({}, "d")})


def test_what_cannot_be_submitted_now_is_submitted_later(engine, broken, answers, monkeypatch):
    answers[0]["squeue"] = (1, "", "Unable to contact")
    broken.start({"d": Task({}, "d")})
    assert broken.wait(0.02) == []
    assert "d" in broken.queued
    monkeypatch.undo()
    monkeypatch.setattr(on_slurm, "ASK", 0.0)
    monkeypatch.setattr(commands, "command", lambda *_: (0, "7_0 R\n7_1 R\n8_0 PD\n", ""))
    job = SimpleNamespace(job_id="8_0", paths=SimpleNamespace(result_pickle=engine.folder / "8_0.pkl", stderr=None))
    monkeypatch.setattr(Slurm, "_executor", lambda *_: SimpleNamespace(submit_array=lambda _: [job]))
    assert broken.wait(0.02) == []
    assert not broken.unsent
    assert broken.jobs["8_0"].names == ["d"]


def test_slurm_that_stays_away_ends_the_sweep(broken, answers, monkeypatch):
    monkeypatch.setattr(on_slurm, "AWAY", 0.0)
    answers[0]["squeue"] = (1, "", "Unable to contact")
    with pytest.raises(ConfigError, match=r"SLURM does not answer: .*Unable to contact.*; the same command goes on"):
        broken.start({"d": Task({}, "d")})


@pytest.mark.parametrize(
    ("err", "says"),
    [
        (
            "sbatch: error: Invalid generic resource (gres) specification\n",
            "Invalid generic .* \\(engine.gpus=0: none\\)",
        ),
        ("sbatch: unrecognized option '--foo=1'\nTry more\n", "engine=slurm: unrecognized option '--foo=1'$"),
    ],
)
def test_what_sbatch_would_refuse_is_refused_first(answers, err, says):
    answers[0]["sbatch"] = (1, "", err)
    with pytest.raises(ConfigError, match=says):
        require_possible(None, 10, 4, 1, (("foo", 1),))
    assert "--foo=1" in answers[1][0]
    assert "--gpus-per-node=1" in answers[1][0]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((9, 0), "engine.cpus: 9 were asked for, and the largest node has 8"),
        ((1, 5), "engine.gpus: 5 were asked for, and the largest node has 4"),
        ((8, 4), None),
    ],
)
def test_what_no_node_has_is_refused_and_what_none_has_now_waits(answers, caplog, asked, says):
    answers[0]["sbatch"] = (1, "", "allocation failure: Requested node configuration is not available\n")
    answers[0]["sinfo"] = (0, "8 gpu:h100:4(S:0-1)\n4 (null)\n", "")
    if says is None:
        require_possible(None, 10, *asked, ())
        assert "so it will wait" in caplog.text
    else:
        with pytest.raises(ConfigError, match=says):
            require_possible(None, 10, *asked, ())


@pytest.mark.parametrize(
    ("gres", "count"),
    [("(null)", 0), ("gpu:2", 2), ("gpu", 1), ("gpu:h100:8(S:0-1),gpu:t4:2", 10), ("shard:8,gpu:a100_3g.20gb:3", 3)],
)
def test_gpus_of_a_node(gres, count):
    assert gpus_of(gres) == count


def test_stopping_signals_what_runs_and_cancels_what_waits(engine, answers):
    answers[0]["squeue"] = (0, "9_1 R\n", "")  # another sweep's
    engine.stop()
    asked = answers[1]
    assert ("scancel", "--state=PENDING", "7") in asked
    assert ("scancel", "--signal=INT", "7") in asked
    assert ("scancel", "7") not in asked
    assert not engine.jobs


def test_an_allocation_makes_its_runs_and_keeps_what_has_ended(monkeypatch):
    class Stub:
        slots = 2

        def __init__(self, config):
            self.begun, self.config = [], config

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apart(self):
            self.is_apart = True

        def start(self, tasks):
            assert self.is_apart
            self.begun += tasks
            assert len(self.begun) <= self.slots

        def wait(self, seconds):
            return [(self.begun.pop(0), Ended(AGAIN, "why"))]

    monkeypatch.setattr(on_slurm, "Local", type("Local", (Stub,), {"Config": on_slurm.Local.Config}))
    made = Allocation({name: Task({}, name).text for name in "abc"}, 2, 1)
    made.ended["a"] = (DONE, "")
    assert pickle.loads(pickle.dumps(made))() == {"a": (DONE, ""), "b": (AGAIN, "why"), "c": (AGAIN, "why")}
