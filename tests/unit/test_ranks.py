"""What launchers say, who may join, and what is refused before anybody waits for anybody."""

import socket
from dataclasses import replace

import pytest
import torch

from kdrun.cli.command import main as kdrun
from kdrun.config.compose import Composer
from kdrun.config.job import Job
from kdrun.core import world as worlds
from kdrun.core.joining import Facts, absent, mistakes
from kdrun.core.peers import Failure, Process, RankFailed
from kdrun.core.ranks import BadLaunch, Launch, launched
from kdrun.core.world import World, world
from kdrun.results.cell import Cell
from kdrun.training.assembly import Assembly
from kdrun.training.remarks import remarks
from kdrun.training.window import Window

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "9",
}
SRUN = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[07-08]-a,b", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip


def test_torchrun_and_srun_say_which_rank_this_is():
    assert launched(TORCHRUN) == Launch(3, 4, 1, 2, "a", 9)
    found = launched(SRUN)
    assert found == replace(Launch(3, 4, 1, 2, "gpu07-a", 0, "srun"), port=found.port)
    assert 15000 <= found.port < 30000
    assert launched({**SRUN, "SLURM_STEP_ID": "4"}).port != found.port
    assert launched({**SRUN, "MASTER_ADDR": "c", "MASTER_PORT": "77"}) == replace(found, address="c", port=77)
    assert launched({**SRUN, **TORCHRUN}).launcher == "torchrun"  # which srun has started, once on each node


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("vm", "vm"),
        ("n1,n2", "n1"),
        ("n[3-7,9]", "n3"),
        ("gpu[007,009]", "gpu007"),
        ("r[1-2]n5", "r1n5"),
        ("", "10.0.0.1"),
    ],
)
def test_rank_0_is_on_the_first_node_of_a_step(nodes, host):
    assert launched({**SRUN, "SLURM_STEP_NODELIST": nodes}).address == host


@pytest.mark.parametrize(
    "alone",
    [
        {},
        {"WORLD_SIZE": "1"},
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"},
        {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},  # the script of sbatch, which is one process
        {"PMI_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_process_is_no_rank(alone):
    assert launched(alone) is None


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"RANK": "0"}, "RANK=0 is set, and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set, and RANK is not"),
        ({**TORCHRUN, "RANK": "4"}, "RANK=4 is none of WORLD_SIZE=4 ranks; allowed: 0 to 3"),
        ({**TORCHRUN, "RANK": "x"}, "RANK=x is no number from 0 on"),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE=0 is no number from 1 on"),
        ({**TORCHRUN, "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 is no number"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK=2 is none of LOCAL_WORLD_SIZE=2"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "MASTER_ADDR is not"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({**SRUN, "SLURM_PROCID": "4"}, "SLURM_PROCID=4 is none of"),
        ({**SRUN, "SLURM_NODEID": "2"}, "SLURM_NODEID=2 is none of the 2 nodes"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun has started 4 processes .OMPI_COMM_WORLD_SIZE.*torchrun or srun"),
        ({"PMI_SIZE": "4"}, "mpirun has started 4 processes"),
        ({"MPI_LOCALNRANKS": "4"}, "mpirun has started 4 processes"),
    ],
)
def test_a_launch_that_cannot_be_is_one_line(monkeypatch, capsys, train, given, line):
    with pytest.raises(BadLaunch, match=line) as error:
        launched(given)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert train("seed=0") == 2
    assert capsys.readouterr().err == f"error: {error.value}\n"


def test_of_a_launch_by_mpirun_the_first_process_tells(monkeypatch, capsys, train):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert train("seed=0") == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "-m", "seed=0,1"], "-m: a sweep makes several runs"),
        (["sweep", "seed=0,1"], "-m: a sweep makes several runs"),
        (["table", "table=demo", "execute=true"], "kdrun table"),
        (["status"], "kdrun status"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_one_run_is_refused_by_rank_0(monkeypatch, capsys, words, line, rank):
    for name, value in {**TORCHRUN, "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    assert kdrun(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    if rank:
        assert told.err == ""
    else:
        assert told.err.startswith(f"error: {line}: torchrun has started 4 processes")
        assert "without torchrun" in told.err
        assert told.err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- joining


@pytest.fixture
def join(monkeypatch, capsys, train):
    """`join(rank, address, port)`: what a rank of two says that finds nobody."""

    def call(rank: int, address: str, port: int) -> str:
        given = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": port}
        for name, value in given.items():
            monkeypatch.setenv(name, str(value))
        assert train("execution.join_seconds=1.5", "tracker=none", "execution.device=cpu", "method=supervised") == 2
        assert world().size == 1
        return capsys.readouterr().err

    return call


def test_a_rank_that_finds_nobody_says_so(join):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = f"error: rank 1: rank 0 cannot be reached at 127.0.0.1:{port} within 1.5 s (MASTER_ADDR, MASTER_PORT, execution.join_seconds)\n"
    assert join(1, "127.0.0.1", port) == line
    assert "rank 0 cannot be reached at no.such.host.invalid" in join(1, "no.such.host.invalid", port)
    line = "error: rank 1 of 2 did not come within 1.5 s; start all, or give execution.join_seconds\n"
    assert join(0, "127.0.0.1", port) == line


def test_a_port_in_use_is_one_line(join):
    with socket.socket(socket.AF_INET6) as used:
        used.bind(("::", 0))
        used.listen()
        told = join(0, "127.0.0.1", used.getsockname()[1])
    assert told.startswith("error: MASTER_PORT: port ")
    assert "is in use" in told
    assert told.count("\n") == 1


HERE = Process("a", 1, "1")
FIRST = Facts((), ("seed=0",), "abc", "cpu", code="0.1 (x)", process=HERE)
GPU = replace(FIRST, device="cuda", gpu="H200 uuid", gpus=1)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (replace(FIRST, mistakes=["seed: bad"]), "rank 1: seed: bad"),
        (replace(FIRST, code="0.2 (x)"), "rank 1 has another kdrun than rank 0: 0.2 (x), not 0.1 (x); start all"),
        (replace(FIRST, torch="1"), "rank 1 has another torch than rank 0: 1, not"),
        (replace(FIRST, command=("seed=1",)), "rank 1 has another command than rank 0: seed=1, not seed=0;"),
        (replace(FIRST, key="def"), "rank 1 has another run than rank 0: def, not abc;"),
        (replace(FIRST, device="cuda"), "rank 1 has another device than rank 0: cuda, not cpu;"),
    ],
)
def test_ranks_that_differ_do_not_join(other, line):
    (found,) = mistakes({0: FIRST, 1: other})
    assert found.startswith(line)


def test_ranks_that_agree_join():
    assert mistakes({0: FIRST, 1: replace(FIRST, process=replace(HERE, pid=2))}) == []
    assert mistakes({0: GPU, 1: replace(GPU, gpu="H200 other")}) == []
    assert mistakes({0: GPU, 1: replace(GPU, process=Process("b", 1, "1"))}) == []
    assert absent(3, {0: FIRST, 1: FIRST, 2: FIRST}, 3) == []


def test_two_ranks_on_one_gpu_are_refused():
    (line,) = mistakes({0: GPU, 1: GPU})
    assert line.startswith("ranks 0 and 1 would work on one GPU (H200 uuid): rank 1 sees 1; start as many processes")


def test_a_device_that_exchanges_no_tensors_is_refused():
    mps = replace(FIRST, device="mps")
    assert mistakes({0: mps, 1: mps}) == ["execution.device: mps: several processes make a run on cpu or cuda"]


def test_the_first_rank_s_own_mistakes_come_first():
    assert mistakes({0: replace(FIRST, mistakes=["a", "b"]), 1: replace(FIRST, code="")}) == ["a", "b"]


# ------------------------------------------------------------------------------------------------------- one process


def test_one_process_asks_nobody():
    here = World()
    assert here.once(lambda: 3) == here.first_then(lambda: 3) == 3
    assert here.lately(5, True) == (5, True)
    assert here.failure() is None
    error = ValueError("x")
    assert here.blamed(error) is error
    here.fail(error)
    assert not here.failing


def test_who_acts_for_all_asks_nobody(monkeypatch):
    class Store(dict):
        def check(self, keys):
            return all(key in self for key in keys)

        def get(self, key):
            return self[key]

        set = dict.__setitem__

    seen = []

    def act():
        seen.append((world().size, world().first, world().part.rows(4)))
        return 1

    store = Store()
    first, second = World(0, 2, store), World(1, 2, store)
    for here in (first, second):
        monkeypatch.setattr(worlds, "_HERE", [here])
        assert here.once(act) == here.first_then(act) == 1
        assert world() is here
    assert seen == [(1, True, slice(0, 4))] * 2 + [(1, False, slice(0, 4))]
    with pytest.raises(ZeroDivisionError):
        first.once(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        second.once(act)


def test_another_rank_s_failure_can_be_sent():
    import pickle

    error = pickle.loads(pickle.dumps(RankFailed(Failure(2, "no room", "OSError"))))
    assert str(error) == "rank 2: no room"
    assert error.failure.kind == "OSError"


def test_values_are_averaged_over_the_ranks_that_have_measured_them(monkeypatch):
    nan = float("nan")
    others = torch.tensor([[3.0, nan, 7.0], [nan, 1.0, nan]])

    class Two(World):
        def mean(self, own):
            lacks = others.isnan() & torch.tensor([False, True, True])
            return (own + torch.stack([others.masked_fill(lacks, 0), (~lacks).to(own)])) / 2

    monkeypatch.setattr(worlds, "_HERE", [Two(0, 2)])
    window = Window()
    window.restore([], ["train/loss/a", "train/b", "train/c"])
    window.steps += [torch.tensor([1.0, 4.0, 5.0]), torch.tensor([2.0, 3.0, nan])]
    found = window._looked_at()
    assert torch.equal(found.nan_to_num(-1), torch.tensor([[2.0, 4.0, 6.0], [-1.0, 2.0, -1.0]]))
    assert torch.equal(window._looked_at().nan_to_num(-1), found.nan_to_num(-1))


def test_a_run_of_another_number_than_its_recipe_says_so_with_the_launch_line():
    words = ("method=supervised", "loss=ce", "execution.device=cpu", "tracker=none", "execution.devices=3")

    def said(*more: str, given: bool = True) -> list[str]:
        with Composer() as composer:
            job = Job(composer.typed([*words, *more]), (*words, *more) if given else ())
        return [line for line in remarks(Assembly.of(job)) if "devices" in line]

    assert said() == [
        "execution.devices: its recipe was made with 3 processes, as torchrun --nproc_per_node=3 -m kdrun.train "
        + " ".join(words) + "; this run has 1, and the same batch of all"
    ]  # fmt: skip
    (line,) = said(given=False)
    assert "made with 3 processes; this run has 1" in line
    assert said("execution.devices=1") == said("execution.devices=null") == []
    worlds.enter(World(1, 3))
    try:
        assert said() == []
    finally:
        worlds.enter(World())


def test_a_table_flags_what_mixes_world_sizes():
    cell = Cell()
    for seed, size, norm in ((0, 1, None), (1, 2, "global"), (2, 2, "local")):
        record = {
            "status": "done",
            "key": str(seed),
            "headline": "student",
            "metrics": {},
            "world_size": size,
            "batch_norm": norm,
        }
        cell.add(seed, record, "test/top1", "last")
    assert cell.origins["world size"] == {"1", "2"}
    assert cell.origins["batch norm"] == {"global", "local"}
