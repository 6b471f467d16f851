"""metrics.jsonl: the values of a run over its steps."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.core.errors import KdrunError
from kdrun.core.files import named, reason, remove, write_bytes
from kdrun.core.hashing import sha256_of_first
from kdrun.core.sums import Sum
from kdrun.runs.record import Record, finite
from kdrun.runs.whole import METRICS, require_whole


class MetricsLog:
    """metrics.jsonl: one line a time, flushed at once. Its writer keeps the checksum of what it wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size, self._digest = 0, hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)

    def cut(self, step: int) -> None:
        """Drop the lines after `step` (they will be written again), and a last line that was cut off by a kill."""
        kept = [line for line in self.lines() if line["step"] <= step]
        if self.path.is_dir():
            remove(self.path)
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._count(self.path.read_bytes())

    def begins_with(self, known: Sum) -> bool:
        """Whether the file still begins with what `sum` told of."""
        try:
            return bool(sha256_of_first(self.path, known["size"]).hexdigest() == known["sha256"])
        except (OSError, ValueError):
            return False

    def go_on(self, known: Sum) -> None:
        """Drop all that came after what `sum` told of."""
        os.truncate(self.path, known["size"])
        self._count(self.path.read_bytes())

    def sum(self) -> Sum:
        """Of all that was written, which then is on the disk."""
        with named(self.path), self.path.open("a") as file:
            os.fsync(file.fileno())
        return {"sha256": self._digest.hexdigest(), "size": self._size}

    def _count(self, content: bytes) -> None:
        self._size, self._digest = len(content), hashlib.sha256(content)

    def lines(self) -> list[dict[str, Any]]:
        out = []
        for line in self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []:
            try:
                content = json.loads(line)
                out.append({**content, "step": int(content["step"])})
            except (ValueError, TypeError, KeyError):
                break
        return out

    def write(self, step: int, values: Mapping[str, float]) -> None:
        line = (json.dumps(finite({"step": step, **values})) + "\n").encode()
        with named(self.path), self.path.open("ab") as file:
            file.write(line)
        self._size += len(line)
        self._digest.update(line)


class Unwritten(MetricsLog):
    """As a rank has it that leaves the writing to the first one, and follows it."""

    def cut(self, step: int) -> None:
        pass

    def begins_with(self, known: Sum) -> bool:
        return True

    def go_on(self, known: Sum) -> None:
        pass

    def write(self, step: int, values: Mapping[str, float]) -> None:
        pass


def logged(directory: Path, record: Record) -> list[dict[str, Any]]:
    """The lines of a run; none where its folder is not at hand.

    Raises:
        KdrunError: they cannot be read; or the run is done, and they are not what it wrote.
    """
    path = directory / METRICS
    if directory.is_dir():
        require_whole(directory, record, METRICS)
    try:
        return MetricsLog(path).lines()
    except (OSError, RecursionError, MemoryError, OverflowError) as error:
        raise KdrunError(f"{path}: not readable ({reason(error)})") from None
