"""The process from which the local engine forks its runs. Light: it is started before anything heavy is imported."""

import multiprocessing
import signal
import sys
from multiprocessing import forkserver
from typing import Any

from kdrun.core.signals import ENDING

PRELOAD = ["timm", "kdrun.training.runner", "kdrun.training.engines.local", "kdrun.training.preload"]


def server() -> Any:
    """The context whose processes are forked from a server, which is started by the first call.

    No signal ends it, or nobody would know how the runs ended: SLURM signals each process of a job, whose ever it is.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, *(["ray"] if "ray" in sys.modules else [])])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # what is blocked here is so in what is started here
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
