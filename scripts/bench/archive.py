"""Runs packed into few files of limited size, as a lent machine sends them back."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

MOST = 14 * 2**20
"""Bytes of what goes into one archive, before it is compressed."""
ARCHIVES = 5
KINDS = {"records": ("record.json", "config.yaml", "metrics.jsonl", "log.txt"), "predictions": (".npz",)}


def pack(outputs: Path, out: Path) -> list[str]:
    """Archives of what runs left, without their weights: a line for each, and for what did not fit.

    What every run with one teacher says of that teacher is packed once, as the teacher's own predictions.
    """
    runs = outputs / "runs"
    said, left = [], ARCHIVES
    for kind, endings in KINDS.items():
        files = [
            path for path in sorted(runs.rglob("*"))
            if path.is_file() and path.name.endswith(endings) and path.stem != "test-teacher"
        ]  # fmt: skip
        for part in _parts(files):
            if not left:
                said.append(f"no room for {len(part)} files of {kind}, from {part[0].relative_to(outputs)} on")
                continue
            left -= 1
            number = "" if part[0] is files[0] else f"_{ARCHIVES - left}"
            path = out / f"{kind}{number}.tar.gz"
            with tarfile.open(path, "w:gz") as archive:
                for file in part:
                    archive.add(file, file.relative_to(outputs))
            said.append(f"wrote {path}: {len(part)} files")
    return said


def _parts(files: Sequence[Path]) -> list[list[Path]]:
    parts: list[list[Path]] = []
    room = 0
    for file in files:
        size = file.stat().st_size
        if not parts or size > room:
            parts.append([])
            room = MOST
        parts[-1].append(file)
        room -= size
    return parts
