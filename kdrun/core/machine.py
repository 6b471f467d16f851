"""What this machine is, and what of it a process may use."""

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
SPINS = "2000"


def cores() -> int:
    """Processor cores that this process may use: those of its affinity, and no more than a container's quota."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = QUOTA.read_text().split()
        return own if most == "max" else max(1, min(own, int(most) // int(period)))
    except (OSError, ValueError):  # another system, or an older one
        return own


def wait_briefly() -> None:
    """Have OpenMP's threads sleep soon where they wait for each other, unless the environment says how they are to.

    GNU's library, which torch comes with on Linux, lets them spin for a millisecond or so: beside other work they then
    take the cores from those that they wait for, and a run crawls. It must be told before it is loaded, so before
    torch is. Where nothing else runs, the short wait costs nothing that can be measured (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def boot_id() -> str:
    """Names this boot and this set of process ids: containers of one host share the first, not the second. Empty where
    the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
