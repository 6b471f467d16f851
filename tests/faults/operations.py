"""Operations that change files below a folder, numbered in their order: any of them can be the last one, or fail."""

import builtins
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = (
    "replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "fsync", "truncate", "ftruncate",
)  # fmt: skip
GROWING = {"open", "write", "mkdir", "link", "symlink"}
"""What a full disk refuses."""


class Operations:
    """The plain ones, each noted as `name path`."""

    reads = False
    """Whether opening a file to read it is one."""

    def __init__(self, folder: Path, notes: Path | None = None) -> None:
        self.folder = f"{folder.absolute()}{os.sep}"
        self.notes = None if notes is None else os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.done = 0

    def do(self, name: str, path: str, call: Callable[[], Any], half: Callable[[], Any]) -> Any:
        """The operation.

        Args:
            half: of a write, that of the first half; else nothing.
        """
        return call()

    def install(self) -> None:
        """From now on, in this process."""
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        plain = io.open
        os.open = self._opened(os.open)  # type: ignore[assignment]
        io.open = builtins.open = self._file(plain)  # type: ignore[assignment]

    def _own(self, path: object, folder: int | None = None) -> str | None:
        """The path below the folder, if it is there."""
        if isinstance(path, int):
            text = os.readlink(f"/proc/self/fd/{path}")
        else:
            text = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
            if folder is not None:
                text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))  # type: ignore[arg-type]
        return text.removeprefix(self.folder) if text.startswith(self.folder) else None

    def _count(self, name: str, path: str, call: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        self.done += 1
        if self.notes is not None:
            os.write(self.notes, f"{name} {path}\n".encode())
        return self.do(name, path, call, half)

    def _counted(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **keys: Any) -> Any:
            path = self._own(args[-1] if name in ("replace", "rename", "link") else args[0], keys.get("dir_fd"))
            call = lambda: plain(*args, **keys)  # noqa: E731
            return call() if path is None else self._count(name, path, call)

        return operation

    def _opened(self, plain: Callable[..., int]) -> Callable[..., int]:
        def operation(path: Any, flags: int, *args: Any, **keys: Any) -> int:
            own = self._own(path, keys.get("dir_fd")) if flags & (os.O_CREAT | os.O_TRUNC) else None
            call = lambda: plain(path, flags, *args, **keys)  # noqa: E731
            return call() if own is None else self._count("open", own, call)

        return operation

    def _file(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        operations = self

        class Raw(io.FileIO):
            """Writes that count."""

            own = ""

            def write(self, data: Any) -> int:
                data = bytes(data)
                return operations._count(
                    "write", self.own, lambda: super(Raw, self).write(data),
                    lambda: super(Raw, self).write(data[: len(data) // 2]),
                )  # fmt: skip

            def truncate(self, size: int | None = None) -> int:
                return operations._count("truncate", self.own, lambda: super(Raw, self).truncate(size))

        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            own, reads = None if isinstance(file, int) else operations._own(file), not set(mode) & set("wax+")
            call = lambda: plain(file, mode, buffering, encoding, errors, newline, closefd, opener)  # noqa: E731
            if own is None or (reads and not operations.reads):
                return call()
            if reads:
                return operations._count("read", own, call)
            kind = mode.replace("b", "").replace("t", "")
            raw = operations._count("open", own, lambda: Raw(file, kind, closefd, opener))
            raw.own = own
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)  # type: ignore[var-annotated]
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

        return opened


class Killed(Operations):
    """SIGKILL at one of them."""

    def __init__(self, folder: Path, at: int, moment: str) -> None:
        """moment: before, half (of a write; else as before) or after."""
        super().__init__(folder)
        self.at, self.moment = at, moment

    def do(self, name: str, path: str, call: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if self.done != self.at:
            return call()
        if self.moment == "half":
            half()
        elif self.moment == "after":
            call()
        return os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Fault:
    """What the operating system answers from one operation on."""

    number: int
    """Of errno."""
    lasting: bool
    """Else only once."""
    short: bool = False
    """Half of a write is done before."""
    names: frozenset[str] = frozenset()
    """The operations that it is answered to; none: all that change files."""


class Failing(Operations):
    """An error at one of them, or from then on."""

    def __init__(self, folder: Path, at: int, fault: Fault) -> None:
        super().__init__(folder)
        self.at, self.fault, self.reads = at, fault, "read" in fault.names

    def do(self, name: str, path: str, call: Callable[[], Any], half: Callable[[], Any]) -> Any:
        fault = self.fault
        now = self.done >= self.at if fault.lasting else self.done == self.at
        if not now or (fault.names and name not in fault.names):
            return call()
        if fault.short:
            half()
        raise OSError(fault.number, os.strerror(fault.number), None if name in ("write", "fsync") else path)
