"""What a launcher says of this process: which rank it is of the processes that make one run. Loads no torch."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.machine import cores

MPI = {
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK", "PMI_SIZE": "PMI_RANK", "MPI_LOCALNRANKS": "MPI_LOCALRANKID",
}  # fmt: skip
"""Of mpirun: how many processes, and which one."""
PORTS = range(15000, 30000)
"""Of the steps of SLURM; below those that a system gives to whoever asks for any."""


@dataclass(frozen=True)
class Launch:
    """One of several processes that make a run."""

    rank: int
    size: int
    local_rank: int
    """Among those of this machine."""
    local_size: int
    address: str
    """Of rank 0's machine."""
    port: int
    launcher: str = "torchrun"

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    @property
    def threads(self) -> int:
        """Cores for this rank. SLURM may have bound each to its own already."""
        own = cores()
        bound = self.launcher == "srun" and own * self.local_size <= (os.cpu_count() or 1)
        return own if bound else max(1, own // self.local_size)


def launch_line(processes: int, arguments: Sequence[str]) -> str:
    """What starts a run of so many processes on one machine, for a shell."""
    start = "python" if processes == 1 else f"torchrun --nproc_per_node={processes}"
    return f"{start} -m kdrun.train {shlex.join(arguments)}".rstrip()


class BadLaunch(ConfigError):
    """Ranks that cannot be.

    Args:
        told: whether this process says so; else rank 0 does.
    """

    def __init__(self, line: str, told: bool = True) -> None:
        self.told = told
        super().__init__(line)


class NoRank0(KdrunError):
    """Rank 0 cannot be reached, so whoever finds that says so."""


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What torchrun or srun says; None: this process makes its runs alone.

    Raises:
        BadLaunch: it says too little, or what cannot be; or it is mpirun.
    """
    if "WORLD_SIZE" in environment or "RANK" in environment:
        return _of_torchrun(environment)
    _refuse_mpi(environment, ("OMPI_COMM_WORLD_SIZE",))
    if _count(environment, "SLURM_STEP_NUM_TASKS") > 1:  # SLURM_NTASKS is also that of a batch script, which is one
        return _of_srun(environment)
    _refuse_mpi(environment, tuple(MPI))
    return None


def refuse_ranks(what: str, remedy: str) -> None:
    """Raises BadLaunch where a launcher has started several processes, for what only one can do.

    Args:
        what: it is, as the line begins.
        remedy: beside leaving the launcher away.
    """
    launch = launched()
    if launch is not None:
        raise BadLaunch(
            f"{what}: {launch.launcher} has started {launch.size} processes, which make one run together; start it "
            f"without {launch.launcher}, {remedy}",
            launch.first,
        )


def _of_torchrun(environment: Mapping[str, str]) -> Launch | None:
    for given, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if other not in environment:
            if (given, environment[given]) == ("WORLD_SIZE", "1"):
                return None
            raise BadLaunch(
                f"{given}={environment[given]} is set, and {other} is not; start the processes of a run with torchrun "
                f"or srun, one process with neither of the two set"
            )
    rank, size = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
    if rank >= size:
        raise BadLaunch(f"RANK={rank} is none of WORLD_SIZE={size} ranks; allowed: 0 to {size - 1}")
    if size == 1:
        return None
    local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, size)
    local_rank = _number(environment, "LOCAL_RANK", 0, rank % local_size)
    if local_rank >= local_size:
        raise BadLaunch(f"LOCAL_RANK={local_rank} is none of LOCAL_WORLD_SIZE={local_size} ranks of this machine")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise BadLaunch(f"RANK is set, and {name} is not: where rank 0 is to be reached; torchrun sets it")
    return Launch(rank, size, local_rank, local_size, environment["MASTER_ADDR"], _port(environment))


def _of_srun(environment: Mapping[str, str]) -> Launch:
    size, rank = _number(environment, "SLURM_STEP_NUM_TASKS", 1), _number(environment, "SLURM_PROCID", 0)
    if rank >= size:
        raise BadLaunch(f"SLURM_PROCID={rank} is none of SLURM_STEP_NUM_TASKS={size} tasks")
    on_nodes = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "")) or [size]
    node = _number(environment, "SLURM_NODEID", 0, 0)
    if node >= len(on_nodes):
        raise BadLaunch(f"SLURM_NODEID={node} is none of the {len(on_nodes)} nodes of SLURM_STEP_TASKS_PER_NODE")
    # not the node that srun was called on (SLURM_LAUNCH_NODE_IPADDR) where there is a list: that may be a login node
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    address = environment.get("MASTER_ADDR") or _first_host(hosts) or environment.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not address:
        raise BadLaunch("SLURM_STEP_NODELIST is not set, and MASTER_ADDR neither: where is rank 0 to be reached?")
    job, step = _number(environment, "SLURM_JOB_ID", 0, 0), _number(environment, "SLURM_STEP_ID", 0, 0)
    port = _port(environment) if environment.get("MASTER_PORT") else PORTS[(97 * job + step) % len(PORTS)]
    return Launch(rank, size, _number(environment, "SLURM_LOCALID", 0, 0), on_nodes[node], address, port, "srun")


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]; [] for what is not of this kind."""
    out: list[int] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return []
        out += [int(match[1])] * int(match[2] or 1)
    return out


def _first_host(nodes: str) -> str:
    """`gpu[07-09,12]-a,cpu1` -> gpu07-a."""
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def _refuse_mpi(environment: Mapping[str, str], names: tuple[str, ...]) -> None:
    for name in names:
        count = _count(environment, name)
        if count > 1:
            raise BadLaunch(
                f"mpirun has started {count} processes ({name}), which do not find each other; start the processes of "
                "a run with torchrun or srun, or several runs at once with kdrun sweep",
                environment.get(MPI[name], "0") == "0",
            )


def _count(environment: Mapping[str, str], name: str) -> int:
    given = environment.get(name, "")
    return int(given) if given.isdecimal() else 0


def _number(environment: Mapping[str, str], name: str, least: int, default: int | None = None) -> int:
    given = environment.get(name)
    if given is None and default is not None:
        return default
    if given is None or not given.isdecimal() or int(given) < least:
        raise BadLaunch(f"{name}={given or ''} is no number from {least} on, as a launcher sets it")
    return int(given)


def _port(environment: Mapping[str, str]) -> int:
    port = _number(environment, "MASTER_PORT", 1)
    if port > 65535:
        raise BadLaunch(f"MASTER_PORT={port} is no port; allowed: 1 to 65535")
    return port
