"""The checkpoint of a run that is being trained: the last two states on disk, and that of the global generators."""

import io
import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdrun.core.errors import KdrunError
from kdrun.core.files import atomic_path

log = logging.getLogger(__name__)


class Checkpoint:
    """last.pt, and previous.pt in case that one is damaged.

    Args:
        folder: need not exist.
        key: the run's, which a state belongs to.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self.last, self.previous = folder / "last.pt", folder / "previous.pt"

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"key": self.key, **state, "random": random_state()}, buffer)
        with atomic_path(self.last) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            if self.last.exists():  # only now that the new one is on disk: one of the two is whole at any time
                os.replace(self.last, self.previous)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The newest state that can be read, `random` for `set_random_state` in it; None: there is none.

        Raises:
            KdrunError: all are damaged, or of another run.
        """
        found = [path for path in (self.last, self.previous) if path.exists()]
        for i, path in enumerate(found):
            try:
                state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            except Exception as error:  # whatever a damaged file makes torch raise
                if i + 1 == len(found):
                    raise KdrunError(
                        f"{path}: damaged checkpoint ({type(error).__name__}); "
                        f"delete {path.parent} to start this run anew"
                    ) from error
                log.warning("%s is damaged; going on from %s", path, found[i + 1].name)
                continue
            if state["key"] != self.key:
                raise KdrunError(f"{path}: belongs to run {state['key']}, not {self.key}; delete {path.parent}")
            return state
        return None


def random_state() -> dict[str, Any]:
    """State of the global generators, in types that torch.load(weights_only=True) reads."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
