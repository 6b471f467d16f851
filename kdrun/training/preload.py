"""Imported by the server that forks runs: all registered parts, so that a child imports nothing."""

from kdrun.core.registry import load

for kind in ("method", "loss", "dataset", "decay", "uncertainty", "teacher", "model"):
    load(kind)
