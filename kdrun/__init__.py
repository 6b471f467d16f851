"""kdrun: run, compare and reproduce (semi-supervised) knowledge distillation for image classification."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdrun.models.network import Network


def load(run_dir: str | Path, net: str | None = None) -> "Network":
    """The trained network of a finished run, in eval mode on the CPU, with its input adapter.

    Args:
        run_dir: a run directory (the one with record.json), or a .safetensors file that kdrun wrote or exported.
        net: which network of the run, e.g. student_2; default: the run's headline network.

    Returns:
        A module that takes raw pixels (B, C, H, W), uint8 or float in [0, 1], and gives `Output.logits` (B, classes).

    Raises:
        KdrunError: not a finished run, or no such network.
    """
    if net is None and Path(run_dir).suffix == ".safetensors" and Path(run_dir).is_file():
        from kdrun.models.network import load_network

        return load_network(Path(run_dir))
    from kdrun.finished import FinishedRun

    return FinishedRun.open(run_dir).network(net)


def __getattr__(name: str) -> Any:
    if name in {"losses", "metrics", "models"}:  # loaded on first use: importing kdrun must not import torch
        import importlib

        return importlib.import_module(f"kdrun.{name}")
    raise AttributeError(f"module 'kdrun' has no attribute {name!r}")
