"""What one may ask of each analysis, apart from their modules, which load torch."""

from typing import Annotated, Literal

from pydantic import Field

from kdrun.core.schema import Schema
from kdrun.results.plots.options import TableOptions


class LinearProbe(Schema):
    """`linear_probe run=<directory> [run=<directory> ...] [labels=all|labeled] [net=<student>] [c=...] [max_iter=]`."""

    run: list[str] = Field(min_length=1)
    labels: Literal["all", "labeled"] = "all"
    """all: every training image but those for validation, also what was set apart for a teacher (dataset.upstream);
    labeled: those that the run saw with their labels."""
    net: str | None = None
    """A student of the run; null: its headline, else its first."""
    c: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: [10.0**k for k in range(-4, 4)], min_length=1
    )
    """Inverse strengths of the L2 penalty, of which the validation images choose."""
    max_iter: int = Field(1000, gt=0)


class Propagation(TableOptions):
    """`propagation table=<name> [metric=confidence_gap] [split=test|val] [net=<student>] [outputs=] [out=]`."""

    metric: str = "confidence_gap"
    """Of the student and its teacher; confidence_gap is mean confidence minus accuracy."""


class Teacher(Schema):
    """`teacher run=<directory> [run=<directory> ...] [split=val|test]`."""

    run: list[str] = Field(min_length=1)
    split: Literal["val", "test"] = "test"


class Vicinal(Schema):
    """`vicinal run=<directory> [run=<directory> ...] [split=train|val|test] [batches= batch_size= seed=]`."""

    run: list[str] = Field(min_length=1)
    split: Literal["train", "val", "test"] = "train"
    """train, as in the authors' code: all training images but those for validation."""
    batches: int = Field(100, gt=0)
    """At most; 100 of 256 are the authors'. No image is used twice, so few images make fewer batches."""
    batch_size: int = Field(256, gt=0)
    seed: int = Field(0, ge=0)
    """Of the choice of images, their pairs and lambda."""


KINDS: dict[str, type[Schema]] = {
    "linear_probe": LinearProbe, "propagation": Propagation, "teacher": Teacher, "vicinal": Vicinal,
}  # fmt: skip
