"""What this machine is, and what of it a process may use."""

import ctypes
import os
import sys
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
SPINS = "2000"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_NEVER, _MAPPED, _MAPPED_BEFORE = 2**31 - 1, 2**30, 2**25  # bytes; glibc before 2.35 takes no more than the last


def cores() -> int:
    """Processor cores that this process may use: those of its affinity, and no more than a container's quota."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = quota()
    return own if most is None else max(1, min(own, int(most)))


def quota() -> float | None:
    """Cores that a container may keep busy; None: as many as it likes, or the system does not tell."""
    try:
        most, period = QUOTA.read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):  # another system, or an older one
        return None


def wait_briefly() -> None:
    """Have OpenMP's threads sleep soon where they wait for each other, unless the environment says how they are to.

    GNU's library, which torch comes with on Linux, lets them spin for a millisecond or so: beside other work they then
    take the cores from those that they wait for, and a run crawls. It must be told before it is loaded, so before
    torch is. Where nothing else runs, the short wait costs nothing that can be measured (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def keep_memory() -> bool:
    """Have glibc keep the memory of one step's activations for the next; False where it was not told to.

    It would give each large block back to the system when it is freed, and the next step would have all its pages made
    and zeroed anew (docs/performance.md). Left as it is where the environment says when to give memory back, and where
    another library allocates.
    """
    said = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or said or {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    mapped = mallopt(_MMAP_THRESHOLD, _MAPPED) or mallopt(_MMAP_THRESHOLD, _MAPPED_BEFORE)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, _NEVER))


def boot_id() -> str:
    """Names this boot and this set of process ids: containers of one host share the first, not the second. Empty where
    the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _fields(place: Path) -> list[str]:
    """State, parent, ... of a process or a thread, as proc(5) has them; [] where the system does not tell."""
    try:
        return (place / "stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return []


def started(pid: int) -> str:
    """Start time of a process in ticks since boot, where the system tells: tells two users of one number apart."""
    fields = _fields(Path(f"/proc/{pid}"))
    return fields[19] if len(fields) > 19 else ""


def has_ended(pid: int) -> bool:
    """Whether nothing of a process runs any more, though its parent has not asked for its exit code yet.

    Its first thread is a zombie as soon as it ends; another one that is still at work may still write.
    """
    if _fields(Path(f"/proc/{pid}"))[:1] not in (["Z"], ["X"]):
        return False
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return False
    return all(_fields(thread)[:1] in (["Z"], ["X"], []) for thread in threads)
