"""Making the frozen network of `teacher`: a finished run, a timm network, weights from a file, or several together."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn

from kdrun.config import TeacherConfig
from kdrun.data.views import View
from kdrun.errors import ConfigError, DataError
from kdrun.losses import mean_of_probabilities
from kdrun.method import Setup
from kdrun.models.network import Output, load_network


class Ensemble(nn.Module):
    """Several networks as one: the logits are the logarithm of the mean of their probabilities.

    Its one feature is `members`, (K, B, classes), the logits of each; loss terms can use none.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.dims: dict[str, int] = {}
        self.name = "+".join(str(member.name) for member in members)

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        if unknown := [name for name in features if name != "members"]:
            raise ConfigError(f"an ensemble of teachers has no feature {unknown[0]!r}")
        logits = torch.stack([member(view).logits for member in self.members])
        return Output(mean_of_probabilities(logits), {"members": logits} if features else {})


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature (Guo et al. 2017, arXiv 1706.04599); its features are not."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.dims = network.dims
        self.name = network.name

    @property
    def class_embeddings(self) -> Tensor | None:
        """The network's own, of a CLIP."""
        found: Tensor | None = getattr(self.network, "class_embeddings", None)
        return found

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        out: Output = self.network(view, features)
        return Output(out.logits / self.temperature, out.features)


def make_teacher(
    spec: TeacherConfig, setup: Setup, runs: Mapping[str, Path], role: str = "teacher", outputs: Path | None = None
) -> nn.Module | None:
    """The network of a teacher, at its temperature.

    Args:
        runs: role -> directory of the finished run, as `teacher_runs` names them.
        outputs: folder whose `artifacts` keep what is made once for a teacher; None: nothing is kept.

    Raises:
        ConfigError: weights that do not fit the dataset or the network.
        DataError: a file that cannot be read.
    """
    if spec.source == "none":
        return None
    network = _made(spec, setup, runs, role, outputs)
    return network if spec.temperature == 1 else Tempered(network, spec.temperature)


def _made(spec: TeacherConfig, setup: Setup, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
    if spec.source == "ensemble":
        members = [
            make_teacher(member, setup, runs, f"{role}_{i + 1}", outputs) for i, member in enumerate(spec.members)
        ]
        return Ensemble([member for member in members if member is not None])
    if spec.source == "tip_adapter":
        from kdrun import tip_adapter

        clip = make_teacher(spec.members[0], setup, runs, f"{role}_1", outputs)
        return tip_adapter.trained(clip, runs[role], setup.num_classes)  # type: ignore[arg-type]
    if spec.source == "train":
        return load_network(runs[role] / "student.safetensors")
    if spec.source in ("open_clip", "clip"):
        from kdrun import clip

        if spec.source == "clip":
            return clip.trained_teacher(spec, setup, runs[role], outputs)
        return clip.teacher(spec, setup, outputs=outputs)
    return untrained_teacher(spec, setup, pretrained=True)


def untrained_teacher(spec: TeacherConfig, setup: Setup, pretrained: bool = False, key: str = "teacher") -> nn.Module:
    """The teacher's network, checked against its weights; with `pretrained` also filled with them.

    Args:
        key: where `spec` stands in the configuration, for messages.
    """
    if spec.source == "ensemble":
        members = enumerate(spec.members)
        return Ensemble([untrained_teacher(member, setup, key=f"{key}.members.{i}") for i, member in members])
    if spec.source == "tip_adapter":
        from kdrun import tip_adapter

        inner = untrained_teacher(spec.members[0], setup, key=f"{key}.members.0")
        return tip_adapter.untrained(inner, setup.num_classes)
    if spec.source in ("open_clip", "clip"):
        from kdrun import clip

        if spec.source == "clip":
            return clip.untrained_teacher(spec, setup)
        return clip.teacher(spec, setup, key, weights=False)
    if spec.model is None:
        raise ConfigError(f"{key}.model: missing; a value is required")
    if spec.source == "timm":
        import timm

        published = timm.get_pretrained_cfg(spec.model.name)
        classes = getattr(published, "num_classes", None)
        if not spec.model.pretrained or published is None or not published.has_weights:
            raise ConfigError(f"{key}.model.pretrained: source=timm needs published weights; or choose train or file")
        if classes != setup.num_classes:
            raise ConfigError(
                f"{key}.model.name: {spec.model.name} was trained for {classes} classes, the dataset has "
                f"{setup.num_classes}; its head would be random. Choose source=train or file"
            )
    # A file's weights take the place of published ones.
    fetch = pretrained and spec.source == "timm"
    network = setup.network(spec.model.replace(pretrained=spec.model.pretrained and fetch), seed=0, role="teacher")
    if spec.source == "file":
        if spec.path is None:
            raise ConfigError(f"{key}.path: missing; give the file with the teacher's weights")
        where = f"{key}.path: {spec.path}"
        state = renamed(read_state(Path(spec.path), where), spec.strip_prefix, spec.rename, where)
        check_state(network.net, network.name, state, where)
        if pretrained:
            network.net.load_state_dict(state)
    return network


HINT = "see teacher.strip_prefix, teacher.rename and teacher.model.args"


def read_state(path: Path, where: str) -> dict[str, Tensor]:
    """Weights from safetensors, or from a PyTorch file read without unpickling code; the content tells which it is.

    Of a checkpoint, the entry state_dict, model or net is taken.

    Args:
        where: the config key and the file, for messages.

    Raises:
        DataError: absent, damaged, or a pickle that wants to run code.
    """
    import pickle

    from safetensors.torch import load_file

    path = path.expanduser()
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what is odd in a file; what is wrong, the error says
            start = file.read(9)
            file.seek(0)
            # A zip archive or a pickle is PyTorch's. The header of safetensors is JSON after eight bytes of length.
            if start.startswith((b"PK", b"\x80")) and start[8:] != b"{":
                with torch.device("cpu"):  # sparse weights would be made on the default device, which may be meta
                    content = torch.load(file, map_location="cpu", weights_only=True)
            else:
                content = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except pickle.UnpicklingError:
        raise DataError(f"{where}: holds more than weights (reading it would run its code), or is damaged") from None
    except Exception as error:  # a damaged file may raise anything
        why = shorten(str(error) or type(error).__name__, 120, placeholder=" ...")  # torch adds pages of advice
        raise DataError(f"{where}: not a readable file of weights ({why})") from None
    for entry in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected names and tensors, got a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DataError(f"{where}: expected names and tensors, got {name!r}: {type(value).__name__}")
    return content


def renamed(state: Mapping[str, Tensor], strip_prefix: str, rename: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """The same weights under the network's names: a prefix taken off, then leading parts replaced.

    Raises:
        ConfigError: two weights get one name.
    """
    out: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    for given, value in state.items():
        name = given.removeprefix(strip_prefix)
        for old, new in rename.items():
            if name == old or name.startswith(f"{old}."):
                name = new + name[len(old) :]
                break
        if name in out:
            raise ConfigError(f"{where}: {came_from[name]} and {given} both become {name}; {HINT}")
        out[name], came_from[name] = value, given
    return out


def check_state(net: nn.Module, name: str, state: Mapping[str, Tensor], where: str, hint: str = HINT) -> None:
    """Refuse weights that do not fit, naming the first difference. Any precision of floating-point numbers fits."""
    own = net.state_dict()
    unfit = f"{where} does not fit {name}"
    # Counters of batches are missing in old files and change nothing in evaluation.
    missing = [part for part in own if part not in state and not part.endswith("num_batches_tracked")]
    extra = [part for part in state if part not in own]
    if missing or extra:
        parts = [
            f"{len(names)} {what}, e.g. {names[0]}"
            for names, what in ((missing, "missing"), (extra, "too many"))
            if names
        ]
        raise ConfigError(f"{unfit}: {'; '.join(parts)}; {hint}")
    for key, value in own.items():
        if key not in state:
            continue
        given = state[key]
        if given.shape != value.shape:
            shapes = f"is {tuple(given.shape)}, the network for this dataset has {tuple(value.shape)}"
            raise ConfigError(f"{unfit}: {key} {shapes}; {hint}")
        dense = given.layout == torch.strided and not given.is_meta
        if not dense or (value.is_floating_point() and not given.is_floating_point()):
            kind = "without content" if given.is_meta else given.dtype if dense else given.layout
            raise DataError(f"{where}: {key} is {kind}, expected dense floating-point numbers")
        if given.is_floating_point() and given.isnan().any():
            raise DataError(f"{where}: {key} holds values that are not numbers (NaN)")
