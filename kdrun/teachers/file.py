"""A network with weights from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from torch import nn

from kdrun.config.run import RunConfig
from kdrun.config.weights import WeightsConfig, averaged
from kdrun.core.registry import register
from kdrun.core.schema import FileContent, OutsideKey
from kdrun.models.factory import NetworkFactory
from kdrun.models.fit import Fit, hint
from kdrun.models.weights import check_state
from kdrun.teachers.classes import ClassesConfig, cut, heads_of
from kdrun.teachers.kind import TeacherKind, frozen


class FileConfig(ClassesConfig, WeightsConfig):
    path: Annotated[str, FileContent(whole=True)]
    """Its weights: safetensors, or a PyTorch file; of a checkpoint the entry that is meant, see `entry`."""
    url: Annotated[str | None, OutsideKey()] = None
    """Where the file is published: `kdrun download` fetches it to `path`."""
    origin: Annotated[str | None, OutsideKey()] = None
    """Whose weights they are, for the footer of tables."""


@register("teacher", "file")
class FileTeacher(TeacherKind[FileConfig]):
    Config = FileConfig

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        return self._network(factory, fill=True)

    def outline(self, factory: NetworkFactory) -> nn.Module:
        return self._network(factory, fill=False)

    def effective(self, config: RunConfig) -> FileConfig:
        spec = super().effective(config).replace(model=frozen(self.spec.model))
        return spec if spec.entry is not None else spec.replace(entry=averaged(spec.path))

    def trained_with(self, loss: str) -> bool:
        return True  # its owner knows

    @property
    def reads_names(self) -> bool:
        return self.spec.reads_names

    def _network(self, factory: NetworkFactory, fill: bool) -> nn.Module:
        spec, where = self.spec, f"{self.key}.path: {self.spec.path}"
        # the file's weights take the place of published ones
        model = spec.model.replace(pretrained=False, file=None)
        network = factory.network(model, seed=0, role="teacher")
        heads = heads_of(factory, model) if spec.classes is not None else []
        found = Fit(spec, network.net.state_dict(), where, self.key, heads).read(Path(spec.path))
        state = found.state
        if spec.classes is not None:
            state = cut(state, heads, spec.classes, factory, f"{self.key}.classes", found.notes)
        more = "" if spec.classes is not None else f", or {self.key}.classes for a teacher of other classes"
        check_state(network.net, network.name, state, where, hint(self.key) + more)
        if fill:
            found.say(where)
            network.net.load_state_dict(state)
        return network
