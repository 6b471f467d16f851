"""How the ranks of a run find each other and see whether they can make one together, all within a given time."""

import hashlib
import logging
import os
import pickle
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d as c10d

from kdrun.core.errors import KdrunError
from kdrun.core.paths import HERE
from kdrun.core.peers import Process, said
from kdrun.core.ranks import Launch, NoRank0
from kdrun.core.version import __version__
from kdrun.core.world import World

log = logging.getLogger(__name__)
SILENCE = timedelta(minutes=30)
"""That a rank waits for tensors of others. Whether they still live, its watch finds out long before."""
ANSWER = 2.0
"""Seconds that the others give rank 0 beyond its own."""


@dataclass(frozen=True)
class Facts:
    """What a rank says of itself before it joins."""

    mistakes: Sequence[str] = ()
    """Of what was asked for, as this rank sees it."""
    command: Sequence[str] = ()
    key: str = ""
    """Of the run."""
    device: str = ""
    """cpu or cuda."""
    gpu: str = ""
    """Its name and uuid; "": none."""
    gpus: int = 0
    """That this process sees."""
    code: str = field(default_factory=lambda: f"{__version__} ({code_hash()})")
    torch: str = torch.__version__
    process: Process = field(default_factory=Process.own)


def code_hash() -> str:
    """Of kdrun's own files, 12 hex digits."""
    whole = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(HERE)}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()[:12]


def gpu_of(device: torch.device) -> str:
    """Name and uuid of a GPU; "": the device is none."""
    if device.type != "cuda":
        return ""
    about = torch.cuda.get_device_properties(device)
    return f"{about.name} {getattr(about, 'uuid', device.index)}"


def reach(launch: Launch, seconds: float) -> Any:
    """The store of the ranks, which rank 0 or the launcher keeps.

    Raises:
        KdrunError: the port is in use.
        NoRank0: nobody answers.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and launch.launcher == "torchrun"
    try:
        store = TCPStore(
            launch.address, launch.port, launch.size, launch.first and not kept, timedelta(seconds=seconds),
            wait_for_workers=False,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        if launch.first and "in use" in str(error).lower():
            raise KdrunError(
                f"MASTER_PORT: port {launch.port} of {socket.gethostname()} is in use, perhaps by another run; give "
                "another one (torchrun --master_port=<port>; with srun, MASTER_PORT=<port>)"
            ) from None
        log.debug("%s", error)
        raise NoRank0(
            f"rank {launch.rank}: rank 0 cannot be reached at {launch.address}:{launch.port} within {seconds:g} s "
            "(MASTER_ADDR, MASTER_PORT, execution.join_seconds)"
        ) from None
    # a launcher's store outlives ranks that it starts anew
    return PrefixStore(f"kdrun/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def agree(launch: Launch, store: Any, own: Facts, seconds: float, end: float) -> dict[int, Facts]:
    """What all ranks say of themselves, once rank 0 has found nothing against it.

    Args:
        seconds: that there were in all.
        end: when they are over, by `time.monotonic`.

    Raises:
        KdrunError: it has; one line for each mistake.
        NoRank0: it does not answer.
    """
    store.set(f"facts/{launch.rank}", pickle.dumps(own))
    if launch.first:
        keys = {rank: f"facts/{rank}" for rank in range(launch.size)}
        _await(store, list(keys.values()), end)
        facts = {rank: pickle.loads(store.get(key)) for rank, key in keys.items() if store.check([key])}
        lines = absent(launch.size, facts, seconds) or mistakes(facts)
        store.set("verdict", pickle.dumps((lines, facts)))
    elif not _await(store, ["verdict"], end + ANSWER):
        raise NoRank0(f"rank {launch.rank}: rank 0 has not answered within {seconds:g} s (execution.join_seconds)")
    lines, facts = pickle.loads(store.get("verdict"))  # of our own rank 0
    if lines and launch.first:  # the store may go with this process
        _await(store, [f"known/{rank}" for rank in facts if rank], time.monotonic() + ANSWER)
    if lines:
        store.set(f"known/{launch.rank}", "")
        raise KdrunError("\n".join(lines))
    return dict(facts)


def _await(store: Any, keys: list[str], end: float) -> bool:
    """Whether all of them are there before the end."""
    while not store.check(keys):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def absent(size: int, facts: Mapping[int, Facts], seconds: float) -> list[str]:
    """Who has not come, in a line."""
    missing = [str(rank) for rank in range(size) if rank not in facts]
    if not missing:
        return []
    who = f"rank{'s' * (len(missing) > 1)} {', '.join(missing[:8])}{' and more' * (len(missing) > 8)} of {size}"
    return [f"{who} did not come within {seconds:g} s; start all, or give execution.join_seconds"]


def mistakes(facts: Mapping[int, Facts]) -> list[str]:
    """Why these ranks cannot make one run, one line for each mistake."""
    first = facts[0]
    if first.mistakes:
        return list(first.mistakes)
    for rank, other in sorted(facts.items()):
        if other.mistakes:
            return [f"rank {rank}: {line}" for line in other.mistakes]
        for what, theirs, ours in (
            ("kdrun", other.code, first.code), ("torch", other.torch, first.torch),
            ("command", " ".join(other.command), " ".join(first.command)), ("run", other.key, first.key),
            ("device", other.device, first.device),
        ):  # fmt: skip
            if theirs != ours:
                told = f"{theirs or 'none'}, not {ours or 'none'}; {_REMEDIES[what]}"
                return [f"rank {rank} has another {what} than rank 0: {told}"]
    owners: dict[tuple[str, str], int] = {}
    for rank, one in sorted(facts.items()):
        if one.device not in ("cpu", "cuda"):
            return [f"execution.device: {one.device}: several processes make a run on cpu or cuda"]
        if one.gpu and (owner := owners.setdefault((one.process.host, one.gpu), rank)) != rank:
            return [
                f"ranks {owner} and {rank} would work on one GPU ({one.gpu}): rank {rank} sees {one.gpus}; start as "
                "many processes on a machine as it has GPUs, with execution.device=auto, or give execution.device=cpu"
            ]
    return []


_REMEDIES = {
    "kdrun": "start all ranks from the same code",
    "torch": "start all ranks in the same environment",
    "command": "give all ranks the same arguments",
    "run": "is its data, or a file that it is given, another one there?",
    "device": "give execution.device",
}


def join(launch: Launch, store: Any, facts: Mapping[int, Facts], device: torch.device, seconds: float) -> World:
    """The ranks, which from then on exchange tensors: over gloo those of the host, over nccl those of GPUs.

    Raises:
        KdrunError: they cannot.
    """
    processes = {rank: one.process for rank, one in facts.items()}
    here = World(launch.rank, launch.size, store.clone() if hasattr(store, "clone") else store, processes)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend_of(device), store=PrefixStore("tensors", store), rank=launch.rank, world_size=launch.size,
            timeout=timedelta(seconds=seconds),
        )  # fmt: skip
        for place in (torch.device("cpu"), device):  # connections are made now
            here.mean(torch.ones((), device=place))
        (c10d.set_timeout if hasattr(c10d, "set_timeout") else c10d._set_pg_timeout)(SILENCE)  # the former from 2.15 on
    except RuntimeError as error:
        failed = here.failure()
        here.fail(error)
        line = f"rank {failed.rank}: {failed.text}" if failed is not None else f"rank {launch.rank}: {said(error)}"
        raise KdrunError(f"the ranks cannot exchange tensors: {line[:500]}") from None
    return here


def backend_of(device: torch.device) -> str:
    """Of torch.distributed."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def disband() -> None:
    """The ranks exchange no tensors any more. Only where all of them come to this."""
    if dist.is_initialized():
        dist.destroy_process_group()
