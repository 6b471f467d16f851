"""Making the frozen network of `teacher`: a finished run, a timm network, weights from a file, or several together."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from kdrun.config.teacher import TeacherConfig
from kdrun.core.errors import ConfigError
from kdrun.models.factory import NetworkFactory
from kdrun.models.network import load_network
from kdrun.models.weights import check_state, read_state, renamed
from kdrun.teachers import clip, tip_adapter
from kdrun.teachers.wrap import Ensemble, Tempered


def make_teacher(
    spec: TeacherConfig,
    factory: NetworkFactory,
    runs: Mapping[str, Path],
    role: str = "teacher",
    outputs: Path | None = None,
) -> nn.Module | None:
    """The network of a teacher, at its temperature.

    Args:
        runs: role -> directory of the finished run, as `teacher_runs` names them.
        outputs: folder whose `artifacts` keep what is made once for a teacher; None: nothing is kept.

    Raises:
        ConfigError: weights that do not fit the dataset or the network.
        DataError: a file that cannot be read.
    """
    return None if spec.source == "none" else _tempered(spec, factory, runs, role, outputs)


def _tempered(
    spec: TeacherConfig, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None
) -> nn.Module:
    network = _made(spec, factory, runs, role, outputs)
    return network if spec.temperature == 1 else Tempered(network, spec.temperature)


def _made(
    spec: TeacherConfig, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None
) -> nn.Module:
    if spec.source == "ensemble":
        numbered = enumerate(spec.members, start=1)
        return Ensemble([_tempered(member, factory, runs, f"{role}_{i}", outputs) for i, member in numbered])
    if spec.source == "tip_adapter":
        inner = _tempered(spec.members[0], factory, runs, f"{role}_1", outputs)
        return tip_adapter.trained(inner, runs[role], factory.num_classes, spec.adapter)
    if spec.source == "train":
        return load_network(runs[role] / "student.safetensors")
    if spec.source in ("open_clip", "clip"):
        if spec.source == "clip":
            return clip.trained_teacher(spec, factory, runs[role], outputs)
        return clip.teacher(spec, factory, outputs=outputs)
    return untrained_teacher(spec, factory, pretrained=True)


def untrained_teacher(
    spec: TeacherConfig, factory: NetworkFactory, pretrained: bool = False, key: str = "teacher"
) -> nn.Module:
    """The teacher's network, checked against its weights; with `pretrained` also filled with them.

    Args:
        key: where `spec` stands in the configuration, for messages.
    """
    if spec.source == "ensemble":
        members = enumerate(spec.members)
        return Ensemble([untrained_teacher(member, factory, key=f"{key}.members.{i}") for i, member in members])
    if spec.source == "tip_adapter":
        inner = untrained_teacher(spec.members[0], factory, key=f"{key}.members.0")
        return tip_adapter.untrained(inner, factory.num_classes)
    if spec.source in ("open_clip", "clip"):
        if spec.source == "clip":
            return clip.untrained_teacher(spec, factory)
        return clip.teacher(spec, factory, key, weights=False)
    if spec.model is None:
        raise ConfigError(f"{key}.model: missing; a value is required")
    if spec.source == "timm":
        import timm

        published = timm.get_pretrained_cfg(spec.model.name)
        classes = getattr(published, "num_classes", None)
        if not spec.model.pretrained or published is None or not published.has_weights:
            raise ConfigError(f"{key}.model.pretrained: source=timm needs published weights; or choose train or file")
        if classes != factory.num_classes:
            raise ConfigError(
                f"{key}.model.name: {spec.model.name} was trained for {classes} classes, the dataset has "
                f"{factory.num_classes}; its head would be random. Choose source=train or file"
            )
    # A file's weights take the place of published ones.
    fetch = pretrained and spec.source == "timm"
    network = factory.network(spec.model.replace(pretrained=spec.model.pretrained and fetch), seed=0, role="teacher")
    if spec.source == "file":
        if spec.path is None:
            raise ConfigError(f"{key}.path: missing; give the file with the teacher's weights")
        where = f"{key}.path: {spec.path}"
        state = renamed(read_state(Path(spec.path), where), spec.strip_prefix, spec.rename, where)
        check_state(network.net, network.name, state, where)
        if pretrained:
            network.net.load_state_dict(state)
    return network
