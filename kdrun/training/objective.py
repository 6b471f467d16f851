"""What a search goes by: one figure of validation images."""

import math
from dataclasses import dataclass
from typing import Any, Self

from kdrun.config.job import Job
from kdrun.core.errors import ConfigError, KdrunError, allowed
from kdrun.runs.metric import HIGHER, LOWER, Metric
from kdrun.training.assembly import Assembly
from kdrun.training.rehearsal import networks_told

DEFAULT = "val/top1"


@dataclass(frozen=True)
class Objective:
    """`val/<figure>` of a run's headline network, or `val/<net>/<figure>`."""

    metric: Metric

    @classmethod
    def of(cls, given: Any) -> Self:
        """Of the key `objective`. Raises ConfigError: no such figure, or not of validation images."""
        text = DEFAULT if given is None else str(given)
        metric = Metric.parse(text)
        if metric.split == "test":
            raise ConfigError(f"objective: {text}: the test images choose nothing; give {DEFAULT}, say")
        if metric.split != "val":
            raise ConfigError(f"objective: {text}: not of validation images; write val/<figure> or val/<net>/<figure>")
        if metric.name not in (*HIGHER, *LOWER):
            known = allowed(metric.name, (*HIGHER, *LOWER))
            raise ConfigError(f"objective: {text}: no figure of which more or less is better{known}")
        return cls(metric)

    def __str__(self) -> str:
        return str(self.metric)

    @property
    def direction(self) -> str:
        """maximize or minimize."""
        return "maximize" if self.metric.name in HIGHER else "minimize"

    def key(self, record: dict[str, Any]) -> str:
        """As the run of this record calls it, in metrics.jsonl too."""
        return self.metric.key(record.get("headline"))

    def value(self, record: dict[str, Any]) -> float:
        """At the end of a run. Raises KdrunError: it is not done, or has no such figure."""
        if record["status"] != "done":
            why = (record.get("error") or {}).get("message") or f"is {record['status']}"
            raise KdrunError(f"run {record['key']}: {why}")
        key, metrics = self.key(record), record["metrics"]
        value = metrics.get(key)
        if value is None or not math.isfinite(value):
            raise KdrunError(f"run {record['key']} has no {key}{'' if key in metrics else allowed(key, metrics)}")
        return float(value)

    def require(self, job: Job) -> None:
        """Raises ConfigError where the run will not have it."""
        outline, metric = Assembly.outline(job), self.metric
        if not len(outline.split.val):
            raise ConfigError(
                f"objective: {self} is of validation images, and this split has none; give dataset.val_fraction"
            )
        if metric.name == "top5" and outline.arrays.num_classes <= 5:
            raise ConfigError(f"objective: {self}: there are {outline.arrays.num_classes} classes; give val/top1")
        nets = networks_told(outline)
        if metric.net is not None and nets and metric.net not in nets:
            raise ConfigError(f"objective: {self}: this run has no such network{allowed(metric.net, nets)}")
        if metric.name.startswith("teacher_") and outline.teacher is None:
            raise ConfigError(f"objective: {self}: this run asks no teacher; give {DEFAULT} or another figure")
