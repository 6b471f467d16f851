"""The checkpoint of a run that is being trained: the last two states on disk, and that of the global generators."""

import hashlib
import io
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdrun.core.errors import KdrunError
from kdrun.core.files import atomic_path, remove

log = logging.getLogger(__name__)
MAGIC = b"kdrun checkpoint 1\n"
"""What a file begins with; then the sha256 of the rest (64 hex digits) and a line feed. Older files begin with PK."""
HEADER = len(MAGIC) + 65
State = dict[str, Any]


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

    def save(self, state: State) -> None:
        buffer = io.BytesIO()
        torch.save({"key": self.key, **state}, buffer)
        content = buffer.getbuffer()
        with atomic_path(self.last) as temporary:
            with temporary.open("wb") as file:
                file.write(MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n")
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self.previous.is_dir():  # which nothing can take the place of
                remove(self.previous)
            if self.last.exists():  # only now that the new one is on disk: one of the two is whole at any time
                os.replace(self.last, self.previous)

    def load(self, restore: Callable[[State], None]) -> list[Exception] | None:
        """Restore the newest state that is whole; one that is not is removed, so that no later one takes its place.

        Args:
            restore: takes a state with its tensors on the CPU. Whatever it raises says that the state is not whole.

        Returns:
            None: it is restored. Else what was wrong with each state that there is.

        Raises:
            KdrunError: a state of another run.
        """
        found = [path for path in (self.last, self.previous) if os.path.lexists(path)]
        errors: list[Exception] = []
        for path in found:
            try:
                state = self.read(path)
                if state["key"] == self.key:
                    restore(state)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever a damaged file makes torch raise
                errors.append(error)
                continue
            if state["key"] != self.key:
                raise KdrunError(f"{path}: belongs to run {state['key']}, not {self.key}; delete {path.parent}")
            if errors:
                log.warning("%s is damaged (%s); going on from %s", self.last, _why(errors[0]), path.name)
                remove(self.last)
            return None
        return errors

    def damage(self, errors: list[Exception]) -> KdrunError:
        """What is said where no state is whole."""
        path = self.last if os.path.lexists(self.last) else self.previous
        return KdrunError(
            f"{path}: damaged checkpoint ({_why(errors[-1])}); delete {path.parent} to start this run anew"
        )

    @staticmethod
    def read(path: Path) -> State:
        """The state in a file, its tensors on the CPU. Raises whatever a damaged file makes torch raise, or OSError."""
        with path.open("rb") as file:
            start = file.read(HEADER)
            if not start.startswith(MAGIC):
                file.seek(0)
            content = file.read()
        if start.startswith(MAGIC):
            if hashlib.sha256(content).hexdigest().encode() != start[len(MAGIC) : -1]:
                raise ValueError("its sha256 differs")
        elif not start.startswith(b"PK"):
            raise ValueError("it does not begin as a checkpoint does")
        state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not isinstance(state.get("key"), str):
            raise ValueError("it has no key")
        return state


def _why(error: Exception) -> str:
    told = str(error).splitlines()[0] if isinstance(error, ValueError) and str(error) else ""
    return f"{type(error).__name__}{': ' + told if told else ''}"


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global generators, in types that torch.load(weights_only=True) reads; of the run's device alone, for
    there may be other ones when the run goes on."""
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
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(_of_device(state["cuda"], device).cpu(), device)


def _of_device(kept: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """An older state has one of each GPU that was visible, perhaps fewer or more than there are by now."""
    if isinstance(kept, torch.Tensor):
        return kept
    index = device.index or 0
    return kept[index if index < len(kept) else 0]
