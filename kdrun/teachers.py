"""Making the frozen network of `teacher`: a finished run, a timm network, weights from a file, or several together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdrun.config import TeacherConfig
from kdrun.data.views import View
from kdrun.errors import ConfigError, DataError
from kdrun.method import Setup
from kdrun.models.network import Network, Output, load_network


class Ensemble(nn.Module):
    """Several networks as one: the logits are the logarithm of the mean of their probabilities. Gives no features."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.dims: dict[str, int] = {}
        self.name = "+".join(str(member.name) for member in members)

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        if features:
            raise ConfigError(f"an ensemble of teachers has no feature {features[0]!r}")
        logs = torch.stack([member(view).logits.log_softmax(1) for member in self.members])
        return Output(logs.logsumexp(0) - math.log(len(self.members)), {})


def make_teacher(
    spec: TeacherConfig, setup: Setup, runs: Mapping[str, Path], role: str = "teacher"
) -> nn.Module | None:
    """The network of a teacher.

    Args:
        runs: role -> directory of the finished run, as `teacher_runs` names them.

    Raises:
        ConfigError: weights that do not fit the dataset or the network.
        DataError: a file that cannot be read.
    """
    if spec.source == "none":
        return None
    if spec.source == "ensemble":
        members = [make_teacher(member, setup, runs, f"{role}_{i + 1}") for i, member in enumerate(spec.members)]
        return Ensemble([member for member in members if member is not None])
    if spec.source == "train":
        return load_network(runs[role] / "student.safetensors")
    return untrained_teacher(spec, setup, pretrained=True)


def untrained_teacher(spec: TeacherConfig, setup: Setup, pretrained: bool = False) -> nn.Module:
    """The teacher's network, checked against its weights; with `pretrained` also filled with them."""
    if spec.source == "ensemble":
        return Ensemble([untrained_teacher(member, setup) for member in spec.members])
    if spec.model is None:
        raise ConfigError("teacher.model: missing; a value is required")
    if spec.source == "timm":
        import timm

        published = timm.get_pretrained_cfg(spec.model.name)
        classes = getattr(published, "num_classes", None)
        if not spec.model.pretrained or published is None or not published.has_weights:
            raise ConfigError("teacher.model.pretrained: source=timm needs published weights; or choose train or file")
        if classes != setup.num_classes:
            raise ConfigError(
                f"teacher.model.name: {spec.model.name} was trained for {classes} classes, the dataset has "
                f"{setup.num_classes}; its head would be random. Choose source=train or file"
            )
    # A file's weights take the place of published ones.
    fetch = pretrained and spec.source == "timm"
    network = setup.network(spec.model.replace(pretrained=spec.model.pretrained and fetch), seed=0, role="teacher")
    if spec.source == "file":
        if spec.path is None:
            raise ConfigError("teacher.path: missing; give the file with the teacher's weights")
        state = renamed(read_state(Path(spec.path)), spec.strip_prefix, spec.rename)
        check_state(network, state, spec.path)
        if pretrained:
            network.net.load_state_dict(state)
    return network


def read_state(path: Path) -> dict[str, Tensor]:
    """Weights from safetensors, or from a PyTorch file read without unpickling code.

    Of a checkpoint, the entry state_dict, model or net is taken.

    Raises:
        DataError: absent, damaged, or a pickle that wants to run code.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = f"teacher.path: {path}"
    try:
        if path.suffix == ".safetensors":
            return load_file(path.expanduser())
        content = torch.load(path.expanduser(), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except pickle.UnpicklingError:
        raise DataError(f"{where}: holds more than weights (reading it would run its code), or is damaged") from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{where}: not a readable file of weights ({error})") from None
    for entry in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{where}: expected names and tensors")
    return content


def renamed(state: Mapping[str, Tensor], strip_prefix: str, rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The same weights under the network's names: a prefix taken off, then leading parts replaced."""
    out = {}
    for name, value in state.items():
        name = name.removeprefix(strip_prefix)
        for old, new in rename.items():
            if name == old or name.startswith(f"{old}."):
                name = new + name[len(old) :]
                break
        out[name] = value
    return out


def check_state(network: Network, state: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights that do not fit, naming the first difference."""
    own = network.net.state_dict()
    where = f"teacher.path: {path} does not fit {network.name}"
    hint = "see teacher.strip_prefix, teacher.rename and teacher.model.args"
    # Counters of batches are missing in old files and change nothing in evaluation.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    if missing or extra:
        parts = [
            f"{len(names)} {what}, e.g. {names[0]}"
            for names, what in ((missing, "missing"), (extra, "too many"))
            if names
        ]
        raise ConfigError(f"{where}: {'; '.join(parts)}; {hint}")
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            given, wanted = tuple(state[name].shape), tuple(value.shape)
            raise ConfigError(f"{where}: {name} is {given}, the network for this dataset has {wanted}; {hint}")
