"""A network with weights from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import nn

from kdrun.config.run import RunConfig
from kdrun.config.teacher import NetworkConfig
from kdrun.core.registry import register
from kdrun.core.schema import FileContent
from kdrun.models.factory import NetworkFactory
from kdrun.models.weights import check_state, read_state, renamed
from kdrun.teachers.kind import TeacherKind, frozen


class FileConfig(NetworkConfig):
    path: Annotated[str, FileContent(whole=True)]
    """Its weights: safetensors, or a PyTorch file of plain tensors."""
    strip_prefix: str = ""
    """Taken off the names in `path`, e.g. "module."."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Leading parts of names in `path` -> the network's, e.g. {linear: fc}."""


@register("teacher", "file")
class FileTeacher(TeacherKind[FileConfig]):
    Config = FileConfig

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        return self._network(factory, fill=True)

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return self._network(factory, fill=False)

    def effective(self, config: RunConfig) -> FileConfig:
        return super().effective(config).replace(model=frozen(self.spec.model))

    def trained_with(self, loss: str) -> bool:
        return True  # its owner knows

    def _network(self, factory: NetworkFactory, fill: bool) -> nn.Module:
        spec, where = self.spec, f"{self.key}.path: {self.spec.path}"
        # the file's weights take the place of published ones
        network = factory.network(spec.model.replace(pretrained=False), seed=0, role="teacher")
        state = renamed(read_state(Path(spec.path), where), spec.strip_prefix, spec.rename, where)
        check_state(network.net, network.name, state, where)
        if fill:
            network.net.load_state_dict(state)
        return network
