"""Ways in which a file that was written well is found later."""

from pathlib import Path


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def deleted(path: Path) -> None:
    path.unlink()


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"in the way")


SAME_SIZE = [flipped, zeroed]
OTHER_SIZE = [truncated, deleted, made_a_folder]
DAMAGE = [*SAME_SIZE, *OTHER_SIZE]
