"""Linear evaluation of what another run learned (as in Chen et al. 2020, arXiv 2006.10029; table 5 of DHO's paper).

The student of a run, whatever its method, is frozen, and a new linear classifier learns on its features, by cross
entropy with all labels. The configuration is that of the run: `method.of` is its method; labels, losses, teacher and
schedule are as it has them. The evaluation has its own number of labels, and of the schedule what is given here.
"""

from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator
from torch import Tensor

from kdrun.config.dataset import NumLabels
from kdrun.config.effective import effective
from kdrun.config.key import run_key
from kdrun.config.needs import Needs
from kdrun.config.nodes import from_nodes, part_config
from kdrun.config.parts import MethodConfig, TrackerConfig
from kdrun.config.run import EvaluateConfig, ExecutionConfig, RunConfig
from kdrun.config.schedule import MOST_STEPS
from kdrun.config.teacher import TeacherConfig
from kdrun.config.views import MixConfig
from kdrun.core.errors import ConfigError
from kdrun.core.registry import lookup, register
from kdrun.core.schema import OutsideKey
from kdrun.core.seeding import subseed
from kdrun.data.views.view import Batch
from kdrun.methods.method import Method
from kdrun.methods.pool import Start
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.network import Network, load_network

ROLE = "features"
APART: dict[str, Any] = {
    "execution": ExecutionConfig(), "tracker": TrackerConfig(), "evaluate": EvaluateConfig(), "plugins": [],
    "written": {},
}  # fmt: skip


class LinearEvalConfig(MethodConfig):
    of: SerializeAsAny[MethodConfig]
    """The method of the run whose features are evaluated."""
    num_labels: NumLabels = None
    """Labeled images of the new classifier, as dataset.num_labels, which are those of that run; null: all."""
    steps: int | None = Field(None, gt=0, le=MOST_STEPS)
    epochs: float | None = Field(None, gt=0, le=MOST_STEPS)
    """Length of the evaluation's training; neither: that of the run."""
    lr: float | None = Field(None, gt=0)
    """null: the run's."""
    source: Annotated[RunConfig | None, OutsideKey()] = None
    """That run, made from the rest of the configuration: not to be given."""
    source_key: str | None = None
    """Its run key: what of it counts. Not to be given."""

    @field_validator("of", mode="before")
    @classmethod
    def of_its_kind(cls, value: Any) -> Any:
        return value if isinstance(value, MethodConfig) else part_config("method", value, "method.of")

    @field_validator("source", mode="before")
    @classmethod
    def of_record(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return from_nodes({"loss" if name == "losses" else name: node for name, node in value.items()})

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give method.steps or method.epochs, not both")
        if (self.source is None) != (self.source_key is None):
            raise ValueError("source and source_key are made by kdrun; leave them out")
        return self


@register("method", "linear_eval")
class LinearEval(Method[LinearEvalConfig]):
    """A new linear classifier on the frozen features of what another run learned."""

    Config: ClassVar[type[MethodConfig]] = LinearEvalConfig
    equation = "H(y, softmax(W f(x) + b)), f frozen"
    source = "Chen et al. 2020, arXiv 2006.10029"

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subseed(config.seed, "init", "linear_eval"))
            self.network.net.get_classifier().reset_parameters()  # whatever published weights brought

    @property
    def network(self) -> Network:
        return self.networks()["student"]

    @classmethod
    def settled(cls, config: RunConfig) -> RunConfig:
        """The evaluation; the run that `config` describes goes into `method.source`."""
        spec = cls.spec_of(config)
        if spec.source is not None:
            return config
        if isinstance(spec.of, LinearEvalConfig):
            raise ConfigError("method.of: linear_eval is an evaluation itself; give the method that it evaluates")
        source = effective(config.replace(method=spec.of))
        if not source.students:
            raise ConfigError(f"method.of: {spec.of.name} trains no student; choose another, e.g. method@method.of=sho")
        schedule = config.schedule
        if spec.steps is not None or spec.epochs is not None:
            schedule = schedule.replace(steps=spec.steps, epochs=spec.epochs)
        if spec.lr is not None:
            schedule = schedule.replace(lr=spec.lr)
        kept = {"source": source.replace(**APART), "source_key": run_key(source)}
        return config.replace(
            method=spec.replace(**kept), losses={"ce": lookup("loss", "ce", "loss").Config(name="ce")}, ramps={},
            teacher=TeacherConfig(), views=config.views.replace(mix=MixConfig()),
            schedule=schedule.replace(lr_for={}), dataset=config.dataset.replace(num_labels=spec.num_labels),
            students=[
                model.replace(trainable="head", head="linear", head_warmup=None, lr_scale=1.0)
                for model in config.students
            ],
        )  # fmt: skip

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(over_ranks="mean")

    @classmethod
    def requires(cls, config: RunConfig) -> dict[str, RunConfig]:
        source = cls.spec_of(config).source
        if source is None:
            return {}
        return {ROLE: source.replace(**{name: getattr(config, name) for name in APART})}

    def before(self, start: Start) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """The network of that run, but for its head."""
        if start.fresh:
            found = load_network(start.required[ROLE].directory / "student.safetensors").net
            own, theirs = self.network.net, _without_head(found)
            if theirs.keys() != _without_head(own).keys():
                raise ConfigError(f"method=linear_eval: the network of its {ROLE} is another; delete {ROLE} and rerun")
            own.load_state_dict({**own.state_dict(), **theirs})
        return {}

    def step(self, batch: Batch, ctx: Context) -> Step:
        return Step(self.losses().target(self.pair(batch, ctx)))


def _without_head(net: Any) -> dict[str, Tensor]:
    """The weights of a network of timm outside of its classifier."""
    classifier = net.get_classifier()
    head = next(name for name, module in net.named_modules() if module is classifier)
    return {name: value for name, value in net.state_dict().items() if not name.startswith(f"{head}.")}
