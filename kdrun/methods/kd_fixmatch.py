"""KD-FixMatch (Wang et al. 2023, arXiv 2309.05826): FixMatch again, started with what a first FixMatch is trusted with.

An outer FixMatch network labels the pool; labels that are confident and that clustering confirms are trusted and stay
frozen. A fresh inner network is trained with FixMatch, in which every unlabeled image has one target (Heuristic 1): the
live prediction on its weak view where that is confident, else its trusted label, else none.
"""

from dataclasses import replace
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator
from torch import Tensor

from kdrun.config.effective import effective, ramps_in
from kdrun.config.model import ModelConfig
from kdrun.config.needs import Needs
from kdrun.config.nodes import part_config
from kdrun.config.parts import MethodConfig
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.registry import lookup, register
from kdrun.core.schema import Schema
from kdrun.core.seeding import subseed
from kdrun.core.world import world
from kdrun.data.views.view import Samples
from kdrun.methods.clustering import ClusteringConfig
from kdrun.methods.fixmatch import FixMatch, FixMatchConfig, LabelsConfig
from kdrun.methods.labeler import Labeler, Seen, one_hot
from kdrun.methods.pool import Required, Start
from kdrun.methods.step import Context, chosen
from kdrun.methods.trusted import Clustering, Selection, Selector, trusted_labels

SHARED = ("unlabeled_ratio", "unlabeled_weight", "joint_forward")
"""Keys that `live` has, too, and that hold for both networks."""
STEP = ("views", "step", "learned", "outputs", "labeled", "unlabeled", "targets")
"""What a method leaves as FixMatch has it, if its labels are all it differs in."""


class OuterConfig(Schema):
    """The outer network. All else is as in the inner run."""

    checkpoint: Literal["last", "best_on_val"] = "last"
    """Which of its weights label the pool."""
    model: ModelConfig | None = None
    """Another network than the student's; null: the same."""


class KDFixMatchConfig(FixMatchConfig):
    select_threshold: float = Field(0.8, ge=0, le=1)
    """tau_select: the outer network's lowest confidence for a trusted label."""
    selector: Selector = "dec"
    """What must agree with the prediction: dec, kmeans, or nothing (confidence, random)."""
    select_as_many_as: Clustering | None = None
    """Of selector confidence and random: only as many labels as this clustering would leave (ours, a control)."""
    merge: str = Field("heuristic1", pattern=r"^(heuristic1|outer_only|inner_only|switch_at:\d+)$")
    """heuristic1; outer_only: trusted labels alone; inner_only: FixMatch; switch_at:<step>: one, then the other."""
    outer: OuterConfig = Field(default_factory=OuterConfig)
    clustering: ClusteringConfig = Field(default_factory=ClusteringConfig)
    live: SerializeAsAny[MethodConfig] | None = None
    """Whose live labels both networks learn from: a name, or {name: flexmatch, threshold: 0.9}; the outer run is one
    of that method. null: FixMatch's. Ratio, weight and joint_forward are those beside it here."""

    @field_validator("live", mode="before")
    @classmethod
    def of_its_kind(cls, value: Any) -> Any:
        if value is None or isinstance(value, MethodConfig):
            return value
        return part_config("method", {"name": value} if isinstance(value, str) else value, "method.live")

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.select_as_many_as and self.selector in ("dec", "kmeans"):
            raise ValueError(
                f"select_as_many_as: goes with selector confidence or random, and selector is {self.selector}"
            )
        if self.selector == "random" and not self.select_as_many_as:
            raise ValueError("selector: random needs a count; give select_as_many_as, dec or kmeans")
        return self

    @property
    def takes_best(self) -> bool:
        return self.outer.checkpoint == "best_on_val"


@register("method", "kd_fixmatch")
class KDFixMatch(FixMatch[KDFixMatchConfig]):
    """FixMatch again, started with what a first FixMatch is trusted with."""

    Config = KDFixMatchConfig
    equation = (
        "as fixmatch, an image labeled argmax q if max q >= threshold, else argmax q_outer if max q_outer >= "
        "select_threshold and its cluster agrees"
    )
    source = "Wang et al. 2023, arXiv 2309.05826"

    @classmethod
    def needs(cls, config: RunConfig) -> Needs:
        return replace(super().needs(config), init="inner", evaluations=cls.spec_of(config).takes_best)

    @classmethod
    def requires(cls, config: RunConfig) -> dict[str, RunConfig]:
        spec, ce = cls.spec_of(config), lookup("loss", "ce", "loss")
        outer = config.replace(
            method=live_method(spec),
            losses={"ce": ce.Config(name="ce")},
            students=[spec.outer.model] if spec.outer.model else config.students,
        )
        return {**super().requires(config), "outer": effective(outer.replace(ramps=ramps_in(outer)))}

    @classmethod
    def labels_with(cls, spec: KDFixMatchConfig) -> tuple[type[Labeler], LabelsConfig]:
        live = live_method(spec)
        kind: tuple[type[Labeler], LabelsConfig] = lookup("method", live.name, "method.live.name").labels_with(live)
        return kind

    @classmethod
    def contradictions(cls, config: RunConfig) -> list[str]:
        errors, spec = super().contradictions(config), cls.spec_of(config)
        if spec.takes_best and config.dataset.val_fraction == 0:
            errors.append("method.outer.checkpoint: best_on_val needs validation images; give dataset.val_fraction")
        switches, steps = spec.merge.partition("switch_at:")[2], config.schedule.steps
        if switches and steps is not None and int(switches) >= steps:
            errors.append(
                f"method.merge: {spec.merge}: the run ends after {steps} steps, so that it never switches; give "
                "a smaller number, or outer_only"
            )
        if spec.live is not None:
            fields, ours = type(spec.live).model_fields, type(spec).model_fields
            if spec.threshold != ours["threshold"].default:
                errors.append(
                    f"method.threshold: live labels are those of method.live={spec.live.name}; give its own keys in "
                    "method.live"
                )
            for name in SHARED:
                if getattr(spec.live, name) not in (fields[name].default, getattr(spec, name)):
                    errors.append(f"method.live.{name}: both networks have that beside it; give method.{name}")
        return errors

    def before(self, start: Start) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """The trusted labels."""
        spec, outer = self.spec, start.required["outer"]
        if spec.takes_best:
            _same_cadence(outer, self.config.schedule)
        selection = Selection(
            spec.select_threshold, spec.selector, spec.clustering, subseed(self.config.seed, "clusters"),
            spec.select_as_many_as,
        )  # fmt: skip
        weights = outer.directory / ("student.best.safetensors" if spec.takes_best else "student.safetensors")
        return world().once(lambda: {"trusted_label": trusted_labels(weights, outer.key, selection, start.pool)})

    def targets(self, unlabeled: Samples, seen: Seen, ctx: Context) -> tuple[Tensor, Tensor]:
        given = unlabeled.extra["trusted_label"]
        has = given >= 0
        label, weight = super().targets(unlabeled, seen, ctx)
        trusted = given.clamp(min=0)
        if label.ndim == 2:
            trusted = one_hot(trusted, label.shape[1]).to(label.dtype)
        merge = self.spec.merge
        if merge == "heuristic1":
            # where labels have shares of a weight (softmatch): the live one where that is a half or more
            better = has & (weight < 0.5)
            at = better if label.ndim == 1 else better[:, None]
            return torch.where(at, trusted, label), torch.where(better, 1.0, weight)
        outer: bool | Tensor = merge == "outer_only"
        if merge.startswith("switch_at:"):
            until = int(merge.partition(":")[2])
            outer = ctx.holds(lambda step: step < until)
        return chosen(outer, lambda: trusted, lambda: label), chosen(outer, lambda: has.float(), lambda: weight)


def live_method(spec: KDFixMatchConfig) -> LabelsConfig:
    """The method of the outer run, whose live labels the inner one learns from, too."""
    shared = {name: getattr(spec, name) for name in SHARED}
    if spec.live is None:
        return FixMatchConfig(name="fixmatch", threshold=spec.threshold, **shared)
    kind = lookup("method", spec.live.name, "method.live.name")
    if not (issubclass(kind, FixMatch) and all(getattr(kind, name) is getattr(FixMatch, name) for name in STEP)):
        raise ConfigError(f"method.live: {spec.live.name} is not FixMatch with other labels; choose e.g. flexmatch")
    return cast("LabelsConfig", spec.live.replace(**shared))


def _same_cadence(outer: Required, schedule: ScheduleConfig) -> None:
    """A run is the same however often it was evaluated, but its best checkpoint is not."""
    done = outer.record["config"]["schedule"]
    for name in ("eval_every_steps", "eval_every_epochs"):
        given, asked = done.get(name), getattr(schedule, name)
        if given != asked:
            raise KdrunError(
                f"{outer.directory}: was evaluated with {name}={given}, this run asks for {asked}: its best checkpoint "
                "is another; use the same cadence, or method.outer.checkpoint=last"
            )
