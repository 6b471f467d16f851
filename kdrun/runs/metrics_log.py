"""metrics.jsonl: the values of a run over its steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.core.files import named, write_bytes
from kdrun.runs.record import finite


class MetricsLog:
    """metrics.jsonl: one line a time, flushed at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def cut(self, step: int) -> None:
        """Drop the lines after `step` (they will be written again), and a last line that was cut off by a kill."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def lines(self) -> list[dict[str, Any]]:
        out = []
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
            try:
                content = json.loads(line)
                out.append({**content, "step": int(content["step"])})
            except (ValueError, TypeError, KeyError):
                break
        return out

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with named(self.path), self.path.open("a") as file:
            file.write(json.dumps(finite({"step": step, **values})) + "\n")
            file.flush()
