"""A Ray cluster, or Ray on this machine: each run is a plain task.

Ray keeps its workers from one task to the next, and with them a GPU that was chosen, memory and threads. So a worker
only waits: the run is made in a child, as `local` makes it, and leaves nothing. What ends the child, or the worker,
ends one run, which the sweep tries again.
"""

import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import cache
from multiprocessing.connection import wait as first_of
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field

from kdrun.core import signals
from kdrun.core.errors import ConfigError
from kdrun.core.machine import cores
from kdrun.core.paths import python_path
from kdrun.core.registry import register
from kdrun.core.slot import Slot
from kdrun.training.engines.engine import Engine, EngineConfig
from kdrun.training.engines.local import PATIENCE, Child, stop
from kdrun.training.task import FAILED, Ended, Task

CONNECT, ANSWER = 3.0, 30.0
"""Seconds to reach an address, twice: for an answer; then for a command of Ray, that starts slowly where much else
runs, to say that it is Ray's head."""
CLIENT = 10001  # the port of ray://
ASK, GONE = 5.0, 20.0
"""Seconds between two looks at Ray's head, and without it until the sweep ends."""
TICK = 0.5
"""Seconds until a worker notices that its task is cancelled."""
STORE = 100 << 20
"""Bytes that Ray takes for objects; ours are a few lines each."""
QUIET = {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
OURS = {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "120"}
"""Of a cluster that is started here: no token in the home folder, and time to start on a busy machine."""


class Share(NamedTuple):
    """What each run asks Ray for, and how many of them fit at once."""

    slots: int
    cpus: float
    gpus: float
    threads: int


@register("engine", "ray")
class Ray(Engine):
    """As many slots as the GPUs of the cluster, times `runs_per_device`; without a GPU as many as its cores."""

    class Config(EngineConfig):
        name: str = "ray"
        address: str | None = None
        """Of a cluster, as `ray.init` takes it; null: one is started here, and ended with the sweep."""
        slots: int | None = Field(None, gt=0, le=100_000)
        """Runs at once; null: as many as there is room for."""
        runs_per_device: int = Field(1, gt=0)
        """Runs that share a GPU."""
        gpus: int | None = Field(None, ge=0)
        """How many of the cluster's GPUs; null: all. 0: the runs see none."""
        threads: int | None = Field(None, gt=0)
        """Of torch, and cores that are asked for, for each run; null: the cores shared among the slots."""

    @classmethod
    def prepare(cls, config: "Ray.Config") -> None:
        if importlib.util.find_spec("ray") is None:
            raise missing("No module named 'ray'")
        if config.address not in (None, "auto"):
            require_cluster(config.address)

    def __init__(self, config: "Ray.Config") -> None:
        super().__init__(config)
        self.ray = installed()
        self.ours = not self.ray.is_initialized()
        if self.ours:
            connect(self.ray, config.address)
        try:
            nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            self.share = share(config, [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes])
        except BaseException:
            self.close()
            raise
        self.machines = len(nodes)
        self.slots = self.share.slots
        self.running: dict[Any, str] = {}
        address = config.address or "auto"
        self.head = self.ray.get_runtime_context().gcs_address if address == "auto" else address
        self.asked = self.seen = time.monotonic()
        self.make = self.ray.remote(
            num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_retries=0, max_calls=0
        )(run_in_child)  # fmt: skip

    @property
    def text(self) -> str:
        on = "this machine" if self.config.address is None else f"{self.machines} machines"
        gpu = f", {self.share.gpus:.3g} of a GPU" if self.share.gpus else ""
        return f"Ray on {on}, {self.slots} runs at once of {self.share.threads} threads{gpu}"

    def start(self, tasks: Mapping[str, Task]) -> None:
        for name, task in tasks.items():
            self.running[self.make.remote(task.text, self.share.threads, self.share.gpus)] = name

    def wait(self, seconds: float) -> list[tuple[str, Ended]]:
        try:
            ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds) if self.running else ([], [])
            if ready:
                ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        except KeyboardInterrupt:
            signals.poll()  # Ray raises its own in place of ours, which knows the signal
            raise
        self._require_head()
        return [(self.running.pop(reference), self._ended(reference)) for reference in ready]

    def _require_head(self) -> None:
        """Raises ConfigError: it has been gone for a while. A minute after its loss Ray ends this very process."""
        now = time.monotonic()
        if now - self.asked < ASK:
            return
        self.asked = now
        try:
            socket.create_connection(place_of(self.head), CONNECT).close()
            self.seen = now
        except OSError as error:
            if now - self.seen > GONE:
                why = f"Ray's head at {self.head} is gone ({error.strerror or error})"
                raise ConfigError(f"engine=ray: {why}; start one, and the same command goes on") from None

    def _ended(self, reference: Any) -> Ended:
        errors = self.ray.exceptions
        try:
            return Ended(*self.ray.get(reference))
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            return Ended(FAILED, _last_line(error))
        except errors.RayError as error:  # the worker, or its machine, is gone
            return Ended(-signal.SIGKILL, f"Ray has lost its worker ({type(error).__name__})")

    def stop(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference)
        if self.running:
            patience = PATIENCE + 10 if self.asked == self.seen else GONE
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=patience)
        self.running.clear()

    def close(self) -> None:
        if self.ours:
            self.ray.shutdown()


def run_in_child(text: str, threads: int, gpus: float) -> tuple[int, str]:
    """In a worker of Ray: make a run, and say how it ended.

    Args:
        gpus: the share of the GPU that Ray has chosen; 0: the run sees none.
    """
    # A cancelled task gets a KeyboardInterrupt, but not where Ray was started with SIGINT ignored (in a script's
    # background, say).
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus else ""
    with tempfile.TemporaryDirectory(prefix="kdrun-") as folder:
        child = Child(Task.from_text(text), Slot(gpu=gpu, threads=threads, share=gpus or 1.0), Path(folder))
        try:
            while not first_of([child.process.sentinel], TICK):
                pass
        except KeyboardInterrupt:  # the task is cancelled
            stop([child])
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        child.process.join()
        ended = child.end()
    return ended.code, ended.why


def share(config: "Ray.Config", nodes: list[tuple[float, float]]) -> Share:
    """What each run gets of a cluster.

    Args:
        nodes: cores and GPUs of each machine.

    Raises:
        ConfigError: no machine has what a run asks for, on which Ray would wait for ever.
    """
    gpus = sum(math.floor(node[1]) for node in nodes)
    if config.gpus is not None and config.gpus > gpus:
        raise ConfigError(f"engine.gpus: {config.gpus} were asked for, and the cluster has {gpus}")
    gpus = gpus if config.gpus is None else config.gpus
    able = [node for node in nodes if not gpus or node[1] >= 1]
    processors, most = sum(node[0] for node in able), max((node[0] for node in able), default=0)
    if config.threads is not None and config.threads > most:
        raise ConfigError(f"engine.threads: {config.threads} cores for each run, and the largest machine has {most:g}")
    room = gpus * config.runs_per_device or int(sum(node[0] // (config.threads or 1) for node in able))
    slots = config.slots or room
    if not slots:
        raise ConfigError("engine.address: no machine of the cluster has a core that is free for runs")
    threads = config.threads or max(1, min(int(processors // slots), int(most)))
    return Share(slots, config.threads or min(threads, processors / slots), 1 / config.runs_per_device if gpus else 0,
                 threads)  # fmt: skip


def installed() -> Any:
    """Ray. Raises ConfigError where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise missing(error) from None
    # What a raylet prints of a dead worker, a page, the sweep says in a line.
    ray._private.worker._worker_logs_enabled = False
    return ray


def missing(why: object) -> ConfigError:
    return ConfigError(f"engine=ray: {why}; pip install 'kdrun[ray]'")


def connect(ray: Any, address: str | None) -> None:
    """To a cluster, or to one that is started here. Raises ConfigError: there is none; after 10 s at the latest."""
    options: dict[str, Any] = {"address": address}
    if address is None:
        for name, value in OURS.items():
            os.environ.setdefault(name, value)
        options = {
            "address": "local", "include_dashboard": False, "num_cpus": cores(), "object_store_memory": STORE,
        }  # fmt: skip
    elif address != "auto":
        require_cluster(address)
    before = signal.getsignal(signal.SIGTERM)  # which Ray takes for itself
    try:
        ray.init(
            **options, log_to_driver=False, logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        what = "a cluster is started here" if address is None else f"no cluster at {address}"
        raise ConfigError(f"engine.address: {what}: {_last_line(error)}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def place_of(address: str) -> tuple[str, int]:
    """Host and port. Raises ConfigError: it is no address."""
    client = address.startswith("ray://")
    try:
        parts = urlsplit(address if client else f"//{address}")
        host, port = parts.hostname, parts.port or (CLIENT if client else None)
    except ValueError:
        host = port = None
    if not host or not port:
        raise ConfigError(f"engine.address: expected auto, host:port or ray://host:port, got {address}")
    return host, port


@cache  # what is there is asked once
def require_cluster(address: str) -> None:
    """Raises ConfigError where nothing that is Ray answers; Ray itself would try for minutes."""
    client = address.startswith("ray://")
    host, port = place_of(address)
    other = ConfigError(f"engine.address: what listens at {address} does not answer as Ray's head does")
    try:
        with socket.create_connection((host, port), CONNECT) as connection:
            if not speaks_grpc(connection):
                raise other
    except OSError as error:
        raise ConfigError(f"engine.address: no cluster at {address} ({error.strerror or error})") from None
    if client:
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    try:
        healthy = subprocess.run(command, capture_output=True, timeout=ANSWER, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise other


def speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other side answers to HTTP/2's greeting with a frame of settings (RFC 9113, 3.4)."""
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return True  # to TLS that is no greeting
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    try:
        return connection.recv(9)[3:4] == b"\x04"
    except TimeoutError:
        return False


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
