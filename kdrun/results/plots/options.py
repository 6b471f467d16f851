"""What one may ask of each picture, apart from their modules, some of which load torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kdrun.core.schema import Schema


class RunOptions(Schema):
    """Of a picture of one run."""

    run: str
    split: Literal["val", "test"] = "test"
    net: str | None = None
    """A network of the run; null: its headline."""
    out: str | None = None
    """The picture, .png or .svg; null: both, in <run>/analysis."""


class TableOptions(Schema):
    """Of a picture of one table."""

    table: str
    split: Literal["val", "test"] = "test"
    net: str | None = None
    """A network of each run; null: its headline."""
    outputs: str = "outputs"
    out: str | None = None
    """The picture, .png or .svg; null: both, in <outputs>/figures."""


class Confidence(TableOptions):
    """`confidence table=<name> [split=val|test] [net=] [outputs=] [out=]`."""


class Confusion(RunOptions):
    """`confusion run=<directory> [split=val|test] [net=] [out=]`."""


class Coverage(RunOptions):
    """`coverage run=<directory> [split=val|test] [net=] [out=]`."""


class Curves(Schema):
    """`curves table=<name>|run=<directory> [run=...] [metric=] [band=range|std] [outputs=] [out=]`."""

    table: str | None = None
    run: list[str] = Field(default_factory=list)
    metric: str = "test/top1"
    """What metrics.jsonl has; <split>/<metric> is the headline network's."""
    band: Literal["range", "std"] = "range"
    """Over seeds: from the smallest to the largest, or mean ± standard deviation (ddof 1)."""
    outputs: str = "outputs"
    out: str | None = None
    """The picture, .png or .svg; null: both, in <outputs>/figures, or in <run>/analysis of a single run."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.table is None) == (not self.run):
            raise ValueError("give table=<name>, or run=<directory> once or more")
        return self


class Reliability(RunOptions):
    """`reliability run=<directory> [split=val|test] [net=] [out=]`."""


class Sheet(Schema):
    """`images dataset=<name> [dataset.path=...] [split=train|test] [classes=12] [outputs=] [out=]`."""

    split: Literal["train", "test"] = "train"
    classes: int = Field(12, ge=1, le=200)
    """Classes that are drawn, spread over all."""
    outputs: str = "outputs"
    out: str | None = None
    """The picture, .png or .svg; null: both, in <outputs>/figures."""


class Tradeoff(TableOptions):
    """`tradeoff table=<name> [x=ece] [y=top1] [split=val|test] [net=] [outputs=] [out=]`."""

    x: str = "ece"
    y: str = "top1"


KINDS: dict[str, type[Schema]] = {
    "confidence": Confidence, "confusion": Confusion, "coverage": Coverage, "curves": Curves,
    "reliability": Reliability, "tradeoff": Tradeoff,
}  # fmt: skip
