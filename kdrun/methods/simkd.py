"""SimKD (Chen et al. 2022): the student learns the teacher's last map, and the teacher's own classifier predicts.

L = map_weight mean (P(f_s) - f_t)^2, f the maps that are pooled for classifiers, P a projector of three convolutions;
p = softmax(h_t(mean over positions of P(f_s))), h_t the teacher's classifier as it is. Projector and classifier are
part of what is left: they are saved and exported with the run, and cost at inference. The student's own classifier is
neither trained nor asked. Terms of `loss`, of which the paper has none, see the logits of h_t.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrun.config.needs import Needs
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import register
from kdrun.core.seeding import subseed
from kdrun.data.views.view import Batch, View
from kdrun.losses.fitnet import fitnet
from kdrun.losses.term import Pair
from kdrun.methods.method import Method
from kdrun.methods.pool import Start
from kdrun.methods.step import Context, Setup, Step
from kdrun.models.network import MAP
from kdrun.models.output import Output

CLASSIFIER = "classifier.weight"


class SimKDConfig(MethodConfig):
    map_weight: float = Field(1.0, gt=0)
    """On the mean of squares between maps."""
    factor: int = Field(2, ge=1)
    """The projector's inner layers have the teacher's channels over this."""


@register("method", "simkd")
class SimKD(Method[SimKDConfig]):
    Config = SimKDConfig
    equation = (
        "map_weight mean (P(f_s) - f_t)^2, predicted: h_t(mean over positions of P(f_s)), h_t the teacher's classifier"
    )
    source = "Chen et al. 2022, arXiv 2203.14001"
    # deviates: where the student's map is larger than the teacher's, the authors pool it before the projector, we
    # behind it, so that a finished run need not know the teacher's size.

    def __init__(self, config: RunConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        student = self.networks()["student"]
        if MAP not in student.dims:
            raise ConfigError(_refused("student", student.name))
        self._width = student.dims[MAP]
        student.net.get_classifier().requires_grad_(False)
        if setup.teacher is not None:
            classifier = setup.teacher.last_layer
            if classifier is None or MAP not in setup.teacher.dims:
                raise ConfigError(_refused("teacher", setup.teacher.name))
            self._build(classifier)
        elif not setup.restoring:
            raise KdrunError("method=simkd was built without a teacher")

    def _build(self, classifier: nn.Linear) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subseed(self.config.seed, "init", "simkd"))
            self.projector = projector(self._width, classifier.in_features, self.spec.factor)
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """A finished run is opened without its teacher: the sizes are those of the saved classifier."""
        if "classifier" not in self._modules and prefix + CLASSIFIER in state_dict:
            classes, channels = state_dict[prefix + CLASSIFIER].shape
            self._build(nn.Linear(channels, classes, bias=f"{prefix}classifier.bias" in state_dict))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return Needs(teacher=True, features=(MAP,), sides=("target", "teacher"), over_ranks="mean", terms=False)

    def parts(self, student: str) -> list[nn.Module]:
        return [*super().parts(student), self.projector]

    def before(self, start: Start) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """Refuses a teacher whose classifier sees more than the mean of its map (a ConvNeXt normalizes it)."""
        if start.fresh and self.teacher is not None:
            out = self.teacher(start.batches(start.first)["labeled"].views["weak"], (MAP,))
            difference = (self._classified(out.features[MAP]) - out.logits).abs().amax()
            if difference > 0.05 * out.logits.abs().amax():  # half precision may be in force
                raise ConfigError(_refused("teacher", self.teacher.name))
        return {}

    def step(self, batch: Batch, ctx: Context) -> Step:
        if self.teacher is None:
            raise KdrunError("method=simkd was built without a teacher")
        samples, losses = batch["labeled"], self.losses()
        view = samples.views["weak"]
        taught = self.teacher(view, self.needed.of_teacher)
        out: Output = self.students["student"](view, self.needed.features)
        projected = self.projector(out.features[MAP])
        seen = Output(self._classified(projected), out.features)
        pair = Pair(seen, taught, samples.target, view.index, ctx.progress, ctx.draw)
        matched = self.weight("map_weight", ctx) * fitnet(projected, taught.features[MAP]).mean()
        return Step({"simkd": matched, **losses.target(pair), **losses.teacher(pair)})

    def predict(self, view: View) -> dict[str, Tensor]:
        """The student's map through projector and the teacher's classifier, as `reused`: more than one network."""
        out: Output = self.students["student"](view, (MAP,))
        return {"reused": self._classified(self.projector(out.features[MAP]))}

    @property
    def headline(self) -> str:
        return "reused"

    def _classified(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.classifier(feature.mean((2, 3)))
        return logits.float()


def _refused(role: str, name: str) -> str:
    return (
        f"method=simkd needs a convolutional {role} with one linear layer on the mean of its last map, and {name} is "
        f"none; choose another {role}, e.g. {role}=resnet20, or method=distill"
    )


def projector(inputs: int, outputs: int, factor: int) -> nn.Sequential:
    """Convolutions of side 1, 3 and 1, each with batch normalization and ReLU; inside of outputs / factor channels."""
    inner = max(1, outputs // factor)
    sizes = ((inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1))
    layers = [
        layer
        for before, after, side in sizes
        for layer in (
            nn.Conv2d(before, after, side, padding=side // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )
    ]  # fmt: skip
    return nn.Sequential(*layers)
