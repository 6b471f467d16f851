"""Ways in which a file that was written well is found later. `at` is a place in it, from 0 to 1."""

from pathlib import Path


def flipped(path: Path, at: float = 2 / 3) -> None:
    content = bytearray(path.read_bytes())
    bit = min(int(len(content) * 8 * at), len(content) * 8 - 1)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def truncated(path: Path, at: float = 1 / 2) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * at)])


def zeroed(path: Path, at: float = 1 / 2) -> None:
    """A block of half the file."""
    content = path.read_bytes()
    start, length = int(len(content) * at), len(content) - len(content) // 2
    path.write_bytes((content[:start] + bytes(length) + content[start + length :])[: len(content)])


def deleted(path: Path, at: float = 0) -> None:
    path.unlink()


def made_a_folder(path: Path, at: float = 0) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"in the way")


SAME_SIZE = [flipped, zeroed]
OTHER_SIZE = [truncated, deleted, made_a_folder]
DAMAGE = [*SAME_SIZE, *OTHER_SIZE]
