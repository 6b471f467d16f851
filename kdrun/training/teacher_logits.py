"""What a frozen teacher says of evaluation images, computed once for all its students.

`outputs/artifacts/teacher_evaluation/<key>` holds the logits exactly as they were computed, so that a record is bitwise
the same whether they were read or computed. The key is of all that decides those bits: what the network is, the images
by content, how they are shown and batched, the precision, and the machine as far as it chooses kernels.
"""

import json
import logging
from collections.abc import Mapping
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from kdrun.core.artifacts import Artifact
from kdrun.core.files import write_bytes
from kdrun.core.hashing import json_hash
from kdrun.core.registry import plugin_hashes
from kdrun.runs.record import package_versions
from kdrun.teachers.cache import fingerprint
from kdrun.teachers.teacher import Teacher
from kdrun.training.evaluator import Evaluator, Logits

log = logging.getLogger(__name__)
VERSION = 1  # raise it when what kdrun's own networks compute changes: it is part of the artifact's name
KIND, FILE = "teacher_evaluation", "logits.safetensors"


class TeacherLogits:
    """Asks a teacher, or reads what it has said.

    Args:
        channels_last: the memory format of its weights.
    """

    def __init__(self, teacher: Teacher, device: torch.device, channels_last: bool, outputs: Path) -> None:
        self.teacher = teacher
        self.device = device
        self.channels_last = channels_last
        self.outputs = outputs

    def of(self, evaluator: Evaluator) -> tuple[Logits, dict[str, Any] | None]:
        """(split, "teacher") -> logits (M, C), and figures for the record; None: they are not kept, which a line says.

        Raises:
            ConfigError, DataError: as the network and the images do.
        """
        if not evaluator.splits:
            return {}, None
        images = evaluator.identity()
        if images is None:
            log.info("the teacher's logits of the test images are not kept: nobody has read the files for their hash")
            return evaluator.logits(self.teacher.predict, "the teacher"), None
        artifact = Artifact.of(self.outputs, KIND, {**self.spec, "evaluation": images})
        sizes = {split: len(index) for split, (_, index, _) in evaluator.splits.items()}

        def build(folder: Path) -> dict[str, Any]:
            found = evaluator.logits(self.teacher.predict, "the teacher")
            values = {split: logits.cpu().contiguous() for (split, _), logits in found.items()}
            write_bytes(folder / FILE, save(values))
            return {}

        def read(folder: Path, _: dict[str, Any]) -> Logits:
            found = load((folder / FILE).read_bytes())
            if {split: len(logits) for split, logits in found.items()} != sizes:
                raise ValueError(f"{FILE} does not have the logits of {sizes}")
            return {(split, "teacher"): found[split].to(self.device) for split in sizes}

        return artifact.value(build, read), {"key": artifact.key, "images": sum(sizes.values())}

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What decides the bits of its logits beside the images, as JSON."""
        network = self.teacher.network
        versions = package_versions()
        return {
            "version": VERSION, "teacher": fingerprint(network), "values": values_of(network),
            "plugins": plugin_hashes([type(module) for module in network.modules()]),
            "channels_last": self.channels_last, "device": _device(self.device), "threads": torch.get_num_threads(),
            "matmul": torch.get_float32_matmul_precision(),
            "packages": {name: versions[name] for name in ("torch", "torchvision", "timm") if name in versions},
        }  # fmt: skip


def values_of(network: nn.Module) -> str:
    """sha256 of what the modules of a network hold beside registered weights: strides, scales, flags, configurations.

    Of a function only the name counts; plug-in files are hashed apart.
    """
    digest = sha256()
    for name, module in network.named_modules():
        own = {key: _told(value) for key, value in sorted(vars(module).items()) if key not in _OF_ALL}
        digest.update(f"{name} {type(module).__qualname__} {json.dumps(own)}\n".encode())
    return digest.hexdigest()


_OF_ALL = frozenset(vars(nn.Module())) - {"training"}  # weights and buffers are in the fingerprint; hooks have numbers
DEPTH = 8  # of what is held within each other; objects may hold their owners


def _told(value: Any, depth: int = DEPTH) -> Any:
    """As JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), list(value.shape), sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Tensor):
        return _told(value.detach().cpu().float().numpy())
    if not depth:
        return type(value).__qualname__
    inner = depth - 1
    if isinstance(value, nn.Module):  # one that is not registered
        return [
            fingerprint(value),
            {key: _told(v, inner) for key, v in sorted(vars(value).items()) if key not in _OF_ALL},
        ]
    if isinstance(value, Mapping):
        return {str(key): _told(part, inner) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_told(part, inner) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_told(part, inner)) for part in value)
    if isinstance(value, partial):
        return [_told(part, inner) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return value.__qualname__
    return [type(value).__qualname__, _told(getattr(value, "__dict__", None), inner)]


def _device(device: torch.device) -> str:
    """What chooses the kernels: the name of a GPU, and of a CPU what it can do."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.backends.cudnn.version()}"
    asked = getattr(torch.cpu, "get_capabilities", None)  # newer torch; with the sizes of caches
    told = {"kind": torch.backends.cpu.get_cpu_capability(), **(asked() if asked is not None else {})}
    return f"{device.type} {json_hash(told)}"
