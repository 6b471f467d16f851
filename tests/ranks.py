"""Several processes that make one run, ended with the test: forked with what this one has imported, and over gloo; or
over NCCL, each from the start and with a device of its own."""

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from kdrun.core.world import World, enter


def over(
    size: int, folder: Path, act: Callable[..., Any], *arguments: Any, seconds: float = 600, backend: str = "gloo"
) -> list[Any]:  # fmt: skip
    """`act(*arguments)` on each rank: what it returns, by rank. Fails with the traceback of the first that fails.

    Args:
        folder: empty; the ranks meet there.
    """
    context: Any = multiprocessing.get_context("fork" if backend == "gloo" else "spawn")  # CUDA bears no fork
    given = folder, backend, act, arguments
    ranks = [context.Process(target=_rank, args=(rank, size, *given)) for rank in range(size)]
    try:
        for rank in ranks:
            rank.start()
        end = time.monotonic() + seconds
        while any(rank.is_alive() for rank in ranks):
            assert not any(rank.exitcode for rank in ranks), _told(folder)
            assert time.monotonic() < end, f"still running after {seconds} s"
            time.sleep(0.02)
        assert not any(rank.exitcode for rank in ranks), _told(folder)
    finally:
        for rank in ranks:
            if rank.pid is not None:
                rank.kill()
                rank.join()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def _told(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("*.txt"))) or "a rank was killed"


def _rank(
    rank: int, size: int, folder: Path, backend: str, act: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    store = dist.FileStore(str(folder / "store"), size)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
        enter(World(rank, size, store))
        found = act(*arguments)
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
        dist.barrier()  # who leaves early ends the others' connections
    except BaseException:
        (folder / f"{rank}.txt").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # nothing of the parent is cleared up twice
