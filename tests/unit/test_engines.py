"""What Ray and SLURM are asked for, and how what they answer is read, without either."""

import pickle
import socket
import sys
from types import SimpleNamespace

import pytest

from kdrun.core.errors import ConfigError
from kdrun.training.engines import ray as on_ray
from kdrun.training.engines import slurm as on_slurm
from kdrun.training.engines.ray import Ray, require_cluster, share
from kdrun.training.engines.slurm import Allocation, Slurm, require_partition
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


def test_something_else_at_an_address(monkeypatch):
    monkeypatch.setattr(on_ray, "ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="does not answer as Ray"):
        require_cluster(f"127.0.0.1:{other.getsockname()[1]}")


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
    answers[0]["squeue"] = (0, "7_0\n7_1\n", "")
    assert engine.wait(0.02) == []
    leave(engine, "7_0.pkl", "success", {"a": (DONE, ""), "b": (1, "broken")})
    assert engine.wait(1) == [("a", Ended(DONE)), ("b", Ended(1, "broken"))]
    (engine.folder / "7_1.err").write_text("error: a mistake\n")
    leave(engine, "7_1.pkl", "success", {"c": (2, "")})
    assert engine.wait(1) == [("c", Ended(2, "a mistake"))]
    assert engine.failures


def test_a_traceback_is_a_failure(engine):
    leave(engine, "7_1.pkl", "error", "Traceback:\n  a line\nImportError: no module\n")
    assert engine.wait(1) == [("c", Ended(1, "ImportError: no module"))]


def test_a_job_that_slurm_has_forgotten_is_lost(engine, answers):
    answers[0]["squeue"] = (0, "7_0\n", "")
    (engine.folder / "7_1.err").write_text("slurmstepd: error: DUE TO TIME LIMIT\n")
    ((name, ended),) = engine.wait(1)
    assert (name, ended.code) == ("c", -9)
    assert "job 7_1: slurmstepd: error: DUE TO TIME LIMIT" in ended.text


def test_where_slurm_does_not_answer_nothing_is_lost(engine, answers):
    answers[0]["squeue"] = (1, "", "timed out")
    assert engine.wait(0.05) == []


def test_stopping_signals_what_runs_and_cancels_what_waits(engine, answers):
    answers[0]["squeue"] = (0, "9_1\n", "")  # another sweep's
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

        def start(self, tasks):
            self.begun += tasks
            assert len(self.begun) <= self.slots

        def wait(self, seconds):
            return [(self.begun.pop(0), Ended(AGAIN, "why"))]

    monkeypatch.setattr(on_slurm, "Local", type("Local", (Stub,), {"Config": on_slurm.Local.Config}))
    made = Allocation({name: Task({}, name).text for name in "abc"}, 2, 1)
    made.ended["a"] = (DONE, "")
    assert pickle.loads(pickle.dumps(made))() == {"a": (DONE, ""), "b": (AGAIN, "why"), "c": (AGAIN, "why")}
