"""NVIDIA's daemon that lets processes share a GPU at the same time, started where that is possible, and stopped again.

It changes no setting of the device. A daemon that runs already is left alone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PATIENCE = 5.0  # seconds until it is there, and until it is gone


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Yields the environment of processes that are to use it, and why there is none ("" where there is)."""
    if shutil.which(CONTROL) is None:
        yield {}, f"no {CONTROL} here"
        return
    if Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists():
        yield {}, "a daemon of CUDA MPS runs here already: what ran before was under it"
        return
    place, logs = folder / "mps", folder / "mps_log"
    place.mkdir()
    logs.mkdir()
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(place), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
    environment = {**os.environ, **own}
    with (folder / "mps.txt").open("w") as file:
        process = subprocess.Popen(
            [CONTROL, "-f"], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        ends = time.monotonic() + PATIENCE
        while not (place / "control").exists() and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        if (place / "control").exists() and process.poll() is None:
            yield own, ""
        else:
            said = " ".join((folder / "mps.txt").read_text("utf-8", "replace").split())[-200:]
            yield {}, f"{CONTROL} did not start (exit code {process.poll()}): {said or 'it said nothing'}"
    finally:
        _stop(process, environment)


def _stop(process: "subprocess.Popen[bytes]", environment: dict[str, str]) -> None:
    """Asks it to quit, then ends what this module has started: the daemon and its servers are one session."""
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run([CONTROL], env=environment, input=b"quit\n", timeout=PATIENCE, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
