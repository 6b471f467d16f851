"""Look at the installation and the machine: versions, devices, disk, wandb, data, extras, the speed of a step.

kdrun doctor                         a line for each thing, with a hint where something may be better
kdrun doctor outputs=/big/outputs root=/big/data
kdrun doctor network=true            asks the servers of wandb and Hugging Face for a connection too
kdrun doctor format=json             for a report of a mistake
kdrun doctor speed=false             without the steps, which take some seconds
Exit code 1: something does not work, such as a folder that cannot be written.
"""

import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.markers import Marker
from packaging.requirements import Requirement

from kdrun.core.errors import KdrunError, Unfinished
from kdrun.core.files import reason
from kdrun.core.later import later
from kdrun.core.machine import cores, quota
from kdrun.core.quantities import readable
from kdrun.core.registry import load, registered
from kdrun.core.schema import Schema, from_arguments
from kdrun.runs.record import PACKAGES, code_version

if TYPE_CHECKING:
    import timm
    import torch

    from kdrun.core.device import autocast, device_of, finish
else:
    timm, torch = later("timm"), later("torch")
    autocast, device_of, finish = later("kdrun.core.device", "autocast", "device_of", "finish")

State = Literal["ok", "warning", "broken"]
GB = 1e9
LITTLE_DISK, LITTLE_MEMORY = 5 * GB, 2 * GB
WRITTEN = 32 << 20  # bytes
SLOW_DISK = 30e6  # bytes a second; checkpoints and predictions are some megabytes
SERVERS = {"wandb": "api.wandb.ai", "weights": "huggingface.co"}
SECONDS, BATCH, SIDE = 0.7, 64, 32  # of a measurement; images of a step; pixels
MEMORY = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    part: str
    name: str
    state: State
    told: str
    hint: str = ""


class Options(Schema):
    """What is looked at where."""

    outputs: str = "outputs"
    root: str = "data"
    """As `dataset.root`."""
    device: str = "auto"
    """As `execution.device`: where the steps are taken."""
    network: bool = False
    """Whether servers are asked for a connection; nothing is sent."""
    speed: bool = True
    format: Literal["text", "json"] = "text"


def main(arguments: Sequence[str]) -> str:
    """The text, or JSON.

    Raises:
        Unfinished: something does not work; with the same text.
    """
    options = from_arguments(Options, arguments)
    parts: list[Callable[[Options], Iterator[Finding]]] = [_versions, _machine, _gpus, _disk, _wandb, _data, _extras]
    parts += [_servers] * options.network + [_speed] * options.speed
    found = [finding for part in parts for finding in part(options)]
    text = json.dumps([asdict(finding) for finding in found], indent=1) if options.format == "json" else _text(found)
    if broken := [f"{finding.name}: {finding.told}" for finding in found if finding.state == "broken"]:
        raise Unfinished(text, *broken)
    return text


def _text(found: Sequence[Finding]) -> str:
    lines, part = [], ""
    wide = max(len(finding.name) for finding in found)
    for finding in found:
        lines += [finding.part] if finding.part != part else []
        part = finding.part
        lines.append(f"  {finding.state:<7}  {finding.name:<{wide}}  {finding.told}")
        lines += [f"{'':11}{'':<{wide}}  -> {finding.hint}"] if finding.hint else []
    odd = sum(finding.state != "ok" for finding in found)
    return "\n".join([*lines, f"{len(found)} looked at, {odd} to think about" if odd else f"{len(found)} looked at"])


def _versions(options: Options) -> Iterator[Finding]:
    code = code_version()
    commit = "" if code["commit"] is None else f", commit {code['commit'][:10]}"
    yield Finding("versions", "kdrun", "ok", f"{code['version']}{commit}{' and changes' * bool(code['dirty'])}")
    yield Finding("versions", "python", "ok", f"{platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        if name != "wandb":
            yield _package(name)


def _package(name: str) -> Finding:
    try:
        return Finding("versions", name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding("versions", name, "broken", "is not installed", f"pip install {name}")


def _machine(options: Options) -> Iterator[Finding]:
    all_cores, own = os.cpu_count() or 1, cores()
    yield Finding("machine", "cpu", "ok", f"{_processor()}: {own} of {all_cores} cores{_limits()}")
    threads = torch.get_num_threads()
    said = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    told = f"torch takes {threads}{' by ' if said else ''}{' and '.join(said)}"
    hint = f"unset it, or give execution.threads={own}" if threads < own else ""
    yield Finding("machine", "threads", "warning" if hint else "ok", told, hint)
    free, total = _memory()
    little = free is not None and free < LITTLE_MEMORY
    told = "not known" if total is None else f"{readable(free or 0)} free of {readable(total)}"
    hint = "images that do not fit: dataset.resident=false, or dataset.stream=true" if little else ""
    yield Finding("machine", "memory", "warning" if little else "ok", told, hint)


def _limits() -> str:
    """What keeps this process from the other cores."""
    most = quota()
    return "" if most is None else f", a quota of {most:.3g} by its cgroup"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> tuple[float | None, float | None]:
    """Bytes of this process's share of the machine: free ones and all; None: the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    told = {key: 1024.0 * int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}
    free, total = told.get("MemAvailable"), told.get("MemTotal")
    with suppress(OSError, ValueError):
        most = float(MEMORY.read_text())  # a container's
        used = float(MEMORY.with_name("memory.current").read_text())
        free, total = min(free or most, most - used), min(total or most, most)
    return free, total


def _gpus(options: Options) -> Iterator[Finding]:
    built = torch.version.cuda or torch.version.hip
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "ok", "Apple's GPU; execution.device=mps takes it")
    if not torch.cuda.is_available():
        if built is None:
            yield Finding("devices", "cuda", "ok", "none, and torch is built without it: runs go on the CPU")
            return
        driver = Path("/proc/driver/nvidia/version").exists()
        hint = (
            "its driver is too old for this torch, or the GPU is taken"
            if driver
            else "a CPU build of torch is 3 GB smaller"
        )
        yield Finding("devices", "cuda", "warning", f"torch is built for CUDA {built} and finds no GPU", hint)
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        told = f"{torch.cuda.get_device_name(index)}: {readable(free)} free of {readable(total)}, CUDA {built}"
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        told += f", driver {_driver()}, bf16 {'yes' if bf16 else 'no (fp16 is faster than bf16 here)'}"
        yield Finding("devices", f"cuda:{index}", "ok", told)


def _driver() -> str:
    with suppress(OSError, IndexError):
        return Path("/proc/driver/nvidia/version").read_text().split("Kernel Module", 1)[1].split()[0]
    return "not known"


def _disk(options: Options) -> Iterator[Finding]:
    given = Path(options.outputs).expanduser()
    place = next(path for path in (given.absolute(), *given.absolute().parents) if path.exists())
    try:
        free = shutil.disk_usage(place).free
        rate = _written(place)
    except OSError as error:
        hint = "give a folder that can be written: execution.outputs=..."
        yield Finding("disk", "outputs", "broken", f"{given}: {place} cannot be written ({reason(error)})", hint)
        return
    little, slow = free < LITTLE_DISK, rate < SLOW_DISK
    hint = (
        "a run that finds the disk full fails" if little else "give execution.outputs on a local disk" if slow else ""
    )
    told = f"{given}{'' if given.exists() else ' (not there yet)'}: {readable(free)} free, {readable(rate)}/s written"
    yield Finding("disk", "outputs", "warning" if hint else "ok", told, hint)


def _written(folder: Path) -> float:
    """Bytes a second that reach the disk."""
    content = os.urandom(WRITTEN)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - started)


def _wandb(options: Options) -> Iterator[Finding]:
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        yield Finding("trackers", "wandb", "warning", "is not installed", "pip install wandb, or tracker=none")
        return
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        yield Finding("trackers", "wandb", "ok", f"{version}, WANDB_MODE={mode}")
        return
    import wandb

    try:
        known = wandb.login(prompt=False, verify=False)  # from the environment or wandb's files; asks nobody
    except wandb.Error as error:
        told = f"{version}, its key is malformed ({reason(error)}): runs are kept offline"
        yield Finding("trackers", "wandb", "warning", told, "wandb login, or tracker=none")
        return
    told = "a key is configured: runs are shown online" if known else "no key: runs are kept offline"
    yield Finding("trackers", "wandb", "ok", f"{version}, {told}", "" if known else "wandb login, or tracker=none")


def _data(options: Options) -> Iterator[Finding]:
    """By the files or the folder that each dataset says it reads; none is opened."""
    root = Path(options.root).expanduser()
    there = [name for name, part in registered("dataset").items() if _lies_in(part, name, options.root)]
    there += ["imagenet"] if (root / "imagenet" / "train").is_dir() else []
    told = ", ".join(sorted(there)) or ("nothing that kdrun knows" if root.is_dir() else "no such folder yet")
    hint = "" if there else "kdrun download dataset=cifar10 gets one; dataset=digits needs none"
    yield Finding("data", "root", "ok", f"{root}: {told}", hint)


def _lies_in(part: Any, name: str, root: str) -> bool:
    if "root" not in part.Config.model_fields:
        return False
    try:
        config = part.Config(name=name, root=root)
        paths = part.sources(config) if hasattr(part, "sources") else [Path(root).expanduser() / part.folder]
    except (AttributeError, ValueError, TypeError, KdrunError):  # it needs more keys than these, or says nothing
        return False
    return bool(paths) and all(path.exists() for path in paths)


def _extras(options: Options) -> Iterator[Finding]:
    """By the metadata of the installed package."""
    try:
        asked = [Requirement(line) for line in metadata.requires("kdrun") or ()]
        extras = metadata.metadata("kdrun").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        yield Finding("extras", "kdrun", "warning", "runs from a folder, not installed", "pip install -e . in it")
        return
    present: list[str] = []
    absent: list[str] = []
    for extra in extras:
        own = [line.name for line in asked if line.marker is not None and _is_of(line.marker, extra)]
        (present if all(map(_installed, own)) else absent).append(extra)
    yield Finding("extras", "installed", "ok", ", ".join(present) or "none")
    yield Finding("extras", "others", "ok", ", ".join(absent) or "none", "pip install 'kdrun[name]'" if absent else "")


def _is_of(marker: Marker, extra: str) -> bool:
    """Whether a requirement comes in by this extra."""
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _servers(options: Options) -> Iterator[Finding]:
    for name, host in SERVERS.items():
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError as error:
            yield Finding("network", name, "warning", f"{host}: no connection ({reason(error)})", "what is local works")
        else:
            yield Finding("network", name, "ok", f"{host} answers")


def _speed(options: Options) -> Iterator[Finding]:
    """Of a small step, as a run would take it, and of what one may choose beside."""
    load("model")
    device = device_of(options.device, "device")
    kinds = [("fp32", True), ("fp32", False), ("bf16", True)]
    rates = [_rate(device, precision, channels_last) for precision, channels_last in kinds]
    for (precision, channels_last), rate in zip(kinds, rates, strict=True):
        told = f"{rate:,.0f} images/s: steps of resnet8, {BATCH} images of {SIDE}x{SIDE}, on {device}"
        other = "schedule.precision=bf16" if channels_last else "schedule.channels_last=false"
        hint = f"faster than the default here: {other}" if rate > 1.1 * rates[0] else ""
        yield Finding("speed", f"{precision}{'' if channels_last else ' nchw'}", "ok", told, hint)


def _rate(device: "torch.device", precision: str, channels_last: bool) -> float:
    """Images a second of training, by the fastest step: other work on the machine slows the others."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    network: Any = timm.create_model("resnet8", num_classes=10)
    network = network.to(device, memory_format=form)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(BATCH, 3, SIDE, SIDE, device=device).contiguous(memory_format=form)
    labels = torch.randint(10, (BATCH,), device=device)

    def seconds() -> float:
        started = time.perf_counter()
        with autocast(device, precision):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finish(device)
        return time.perf_counter() - started

    seconds()
    until = time.perf_counter() + SECONDS
    taken = [seconds(), seconds()]
    while time.perf_counter() < until:
        taken.append(seconds())
    return BATCH / min(taken)
