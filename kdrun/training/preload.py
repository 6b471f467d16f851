"""Imported by the server that forks runs: all registered parts, and what a run imports, so that a child does not."""

import atexit
import gc
import importlib
import os

from kdrun.core.registry import load

for name in ("numpy.ctypeslib", "numpy.ma", "timm.optim", "torch.utils.flop_counter"):
    importlib.import_module(name)
for kind in ("method", "loss", "dataset", "decay", "uncertainty", "teacher", "model", "tracker"):
    load(kind)
gc.collect()
gc.freeze()  # or the first collection of a child copies every page
SERVER = os.getpid()


def _leave() -> None:
    if os.getpid() == SERVER:  # what is frozen cannot be taken apart, and some of it complains
        os._exit(0)


atexit.register(_leave)
