"""What a figure was measured on."""

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
TELLING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
"""Flags of a processor that decide which kernels run."""

SPEAKING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, memory, versions, commit, date and load; no name of the machine and no path."""
    cpu = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpu, re.M)
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", cpu, re.M)).split())
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.M)
    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    out = {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "flags": [flag for flag in TELLING if flag in flags],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(int(memory[1]) * 1024 / 1e9, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onednn": onednn[1] if onednn else None,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ
        },
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": [round(value, 2) for value in os.getloadavg()] if sys.platform != "win32" else [],
    }
    if device is not None and device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        out["accelerator"] = {
            "name": found.name, "memory_gb": round(found.total_memory / 1e9, 1), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "driver": _driver(),
        }  # fmt: skip
    return out


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""


def _git(*words: str) -> str | None:
    """None outside a repository."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _driver() -> str | None:
    """Version of NVIDIA's driver; None where nothing says it."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None
