"""Imported by the server that forks runs: all registered parts, and what a run would import, so that a child does not."""

import importlib

from kdrun.core.registry import load

for name in ("numpy.ctypeslib", "numpy.ma", "timm.optim", "torch.utils.flop_counter"):
    importlib.import_module(name)
for kind in ("method", "loss", "dataset", "decay", "uncertainty", "teacher", "model"):
    load(kind)
