"""What a whole record is: its fields and their types, as far as anything reads them."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from kdrun.core.errors import ConfigError
from kdrun.core.schema import Schema, build

DEEPEST = 64  # mappings and lists within each other; a record has about six
LONGEST = 200  # characters of what is wrong


class Part(Schema):
    """Fields that nobody has asked for are let through: a newer kdrun may have written them."""

    model_config = ConfigDict(extra="ignore")


class Named(Part):
    name: str


class RecordedConfig(Part):
    """As far as tables look into it; whoever builds a run of it types all of it."""

    method: Named
    dataset: dict[str, Any] | None = None
    students: list[dict[str, Any]] | None = None
    loss: dict[str, dict[str, Any]] | None = None
    schedule: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None
    plugins: list[str] | None = None


class RecordedNet(Part):
    model: str | None = None
    num_params: int | None = Field(None, ge=0)
    flops: int | None = Field(None, ge=0)


class Best(Part):
    step: int | None = None
    metrics: dict[str, float | None]


class Code(Part):
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None


class Failure(Part):
    type: str = ""
    message: str = ""


class WholeRecord(Part):
    """record.json. What has no default is in every record since the first; the rest came later, or may be unknown."""

    schema_: Literal[1] = Field(alias="schema")
    status: Literal["running", "done", "failed"]
    key: str
    seed: int
    dataset: str
    num_labels: int | str | None
    method: str
    headline: str | None
    config: RecordedConfig
    metrics: dict[str, float | None]
    nets: dict[str, RecordedNet]
    requires: dict[str, str | None]
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    world_size: int | None = None
    backend: str | None = None
    batch_norm: str | None = None
    steps: int | None = None
    seconds: dict[str, float | None] | None = None
    split: dict[str, int | str | list[int]] | None = None
    class_names: list[str] | None = None
    best_on_val: Best | None = None
    artifacts: dict[str, Any] | None = None
    sets: dict[str, str] | None = None
    corruptions: str | None = None
    overrides: list[str] | None = None
    code: Code | None = None
    packages: dict[str, str] | None = None
    plugins: dict[str, str] | None = None
    warnings: list[str] | None = None
    error: Failure | None = None


def fault(record: dict[str, Any]) -> str | None:
    """The first thing that is wrong with a record of schema 1; None: it is whole."""
    if _depth(record) > DEEPEST:
        return f"mappings and lists nest deeper than {DEEPEST}"
    try:
        build(WholeRecord, record, "")
    except ConfigError as error:
        line = error.lines[0] if len(error.lines[0]) <= LONGEST else error.lines[0][:LONGEST] + " …"
        return line + (f"; and {len(error.lines) - 1} more" if len(error.lines) > 1 else "")
    return None


def _depth(value: Any) -> int:
    """Level by level: what calls itself would fail of what this looks for."""
    depth, level = 0, [value]
    while level and depth <= DEEPEST:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return depth
