"""The contract of a kind of teacher, one file each in this folder, and the network that a kind makes.

`@register("teacher", "<name>")` on a class makes `teacher.source=<name>`; its `Config` holds the keys of that kind.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from torch import nn

from kdrun.config.model import ModelConfig
from kdrun.config.run import RunConfig
from kdrun.config.teacher import MembersConfig, TeacherConfig
from kdrun.core.errors import ConfigError
from kdrun.models.factory import NetworkFactory
from kdrun.teachers.wrap import Tempered

C = TypeVar("C", bound=TeacherConfig)
M = TypeVar("M", bound=MembersConfig)


class TeacherKind(Generic[C]):
    """Where a frozen network comes from. A kind must say `Config`, `build` and `outline`; the rest has defaults.

    Args:
        spec: its configuration.
        key: where that stands in the run's configuration, for messages.
    """

    Config: type[C]
    present: ClassVar[bool] = True
    """Whether there is a teacher at all."""
    is_clip: ClassVar[bool] = False
    """Whether it tells classes by their names, and gives its image features, of length 1, as `prelogits`."""
    features: ClassVar[tuple[str, ...]] = ()
    """What its network gives beside the features of any network."""
    as_its_run: ClassVar[bool] = False
    """Whether its network is the one that its own run has evaluated, so that both have the same figures."""

    trains_model: ClassVar[bool] = False
    """Whether a run of its own trains `spec.model`."""

    def __init__(self, spec: C, key: str = "teacher") -> None:
        self.spec = spec
        self.key = key

    # ------------------------------------------------------------------------------------------ the network

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        """The network with its weights, as `make_teacher`, at temperature 1."""
        raise NotImplementedError

    def outline(self, factory: NetworkFactory) -> nn.Module:
        """The network without its weights, checked against files that hold them: what a run is checked with.

        It may be built on the meta device, where numbers cannot be looked at.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ the configuration

    def runs(self, config: RunConfig, role: str) -> dict[str, RunConfig]:
        """The runs that must be finished before `config` can ask this teacher, by role.

        Args:
            role: the name of a run of its own; the k-th member's is `<role>_<k>`.
        """
        return {}

    def contradictions(self, config: RunConfig) -> list[str]:
        """One line for each thing in `config`, which asks this teacher, that does not go with it."""
        return []

    def effective(self, config: RunConfig) -> C:
        """`spec` without what has no effect, and with what a default outside of it decides written out."""
        spec = self.spec
        same = spec.precision == config.schedule.precision
        return spec.replace(cache=spec.cache.effective(), precision=None if same else spec.precision)

    @property
    def draws_labels(self) -> bool:
        """Whether it is another one where `config` draws other labeled images."""
        return False

    @property
    def follows_schedule(self) -> bool:
        """Whether its own run is trained with the schedule of `config`."""
        return False

    @property
    def prompts(self) -> list[str] | str | None:
        """The sentences that it knows the classes by, as `templates` takes them; None: none of its own."""
        return None

    @property
    def reads_names(self) -> bool:
        """Whether it depends on what the classes are called, beside a CLIP."""
        return False

    @property
    def published(self) -> list[ModelConfig]:
        """The networks of timm whose published weights `build` reads."""
        return []

    def trained_with(self, loss: str) -> bool:
        """Whether it was trained with this loss term, or may have been for all that is known."""
        return False


class MembersKind(TeacherKind[M]):
    """A kind that is made of other teachers."""

    def runs(self, config: RunConfig, role: str) -> dict[str, RunConfig]:
        out: dict[str, RunConfig] = {}
        for i, member in enumerate(self.spec.members):
            out |= member.kind(f"{self.key}.members.{i}").runs(config, f"{role}_{i + 1}")
        return out

    def effective(self, config: RunConfig) -> M:
        return super().effective(config).replace(members=[m.kind().effective(config) for m in self.spec.members])

    def members(
        self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None
    ) -> list[nn.Module]:
        """Their networks, each at its temperature."""
        numbered = enumerate(self.spec.members, start=1)
        return [_tempered(member, factory, runs, f"{role}_{i}", outputs) for i, member in numbered]

    def outlines(self, factory: NetworkFactory) -> list[nn.Module]:
        """As `outline`, of each."""
        return [
            untrained_teacher(member, factory, f"{self.key}.members.{i}") for i, member in enumerate(self.spec.members)
        ]


def make_teacher(
    spec: TeacherConfig,
    factory: NetworkFactory,
    runs: Mapping[str, Path],
    role: str = "teacher",
    outputs: Path | None = None,
) -> nn.Module | None:
    """The network of a teacher, at its temperature; None of source=none.

    Args:
        runs: role -> directory of the finished run, as `TeacherKind.runs` names them.
        outputs: folder whose `artifacts` keep what is made once for a teacher; None: nothing is kept.

    Raises:
        ConfigError: weights that do not fit the dataset or the network.
        DataError: a file that cannot be read.
    """
    return _tempered(spec, factory, runs, role, outputs) if spec.kind().present else None


def _tempered(
    spec: TeacherConfig, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None
) -> nn.Module:
    network: nn.Module = spec.kind().build(factory, runs, role, outputs)
    _refuse_network(network, spec, "build")
    return network if spec.temperature == 1 else Tempered(network, spec.temperature)


def untrained_teacher(spec: TeacherConfig, factory: NetworkFactory, key: str = "teacher") -> nn.Module:
    """The teacher's network without its weights, checked against them.

    Args:
        key: where `spec` stands in the configuration, for messages.
    """
    network: nn.Module = spec.kind(key).outline(factory)
    _refuse_network(network, spec, "outline")
    return network


def _refuse_network(network: object, spec: TeacherConfig, member: str) -> None:
    if not isinstance(network, nn.Module) or not isinstance(getattr(network, "dims", None), Mapping):
        raise ConfigError(
            f"teacher.source: {spec.source}: {member}() gives a {type(network).__name__}, expected a network with "
            "`dims` and `name`, such as factory.network(...) makes; see docs/extend/teacher.md"
        )


def frozen(model: ModelConfig) -> ModelConfig:
    """A network that nobody trains, without what says how it is trained."""
    return model.replace(trainable="all", head_warmup=None)
